"""All that a GPU has to be asked, in the order of its worth, in at most eight minutes.

First whether each kernel of attention computes what plain attention does; then training and
encoding of encoders with random weights beside sentence-transformers, in bfloat16, on texts of one
length and on the lengths of the standard library's docstrings; then cached gradients at 16,384
pairs. MFU is of what the texts themselves need, without padding, on both sides.

    python benchmarks/gpu.py OUT --dry-run
    python benchmarks/gpu.py OUT
    python benchmarks/gpu.py OUT --toy

Each case is a process of its own and leaves its rows in OUT/rows.jsonl as soon as it has ended; the
same command goes on with those that are missing. At the end the rows are a table in OUT/table.md,
and with `--results FILE` at the end of that file. Needs one GPU, JAX with CUDA, and torch with CUDA
and sentence-transformers for their side. `--toy` runs tiny sizes on a CPU within a minute, and its
figures mean nothing.
"""

import importlib.util
import json
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import tyro

REAL = 0
"""Stands for the lengths of docstrings."""
STEPS = 8
MODELS = ("t5_small", "t5_base", "bert_base", "modernbert_base")


@dataclass(frozen=True)
class Options:
    """What to measure."""

    out: tyro.conf.Positional[Path]
    """Folder for the rows; what is there is not measured again."""
    dry_run: bool = False
    """Print what would be run, and how long it is expected to take."""
    toy: bool = False
    """Tiny models and batches on the CPU, to try the benchmark itself."""
    results: Path | None = None
    """Markdown file that the table is put at the end of."""
    tokens: int = 65536
    """Of a batch without padding."""
    budget_s: float = 480
    """No case is begun that is expected to end after so long."""
    case: str = ""
    """Set by the benchmark itself: run one case."""

    @property
    def lengths(self) -> tuple[int, ...]:
        """Tokens of each text."""
        return (16, REAL) if self.toy else (64, 128, 512, REAL)

    @property
    def longest(self) -> int:
        """Tokens of a text and of a row."""
        return max(self.lengths) * (2 if self.toy else 1)

    @property
    def steps(self) -> int:
        """That are timed, after two."""
        return 1 if self.toy else STEPS

    @property
    def device(self) -> str:
        """In torch's words."""
        return "cpu" if self.toy else "cuda"

    def pairs(self, length: int) -> int:
        """In a batch."""
        return max(8, (512 if self.toy else self.tokens) // (2 * (length or 128)))


class Case(NamedTuple):
    """What one process measures."""

    name: str
    expected_s: float
    run: Callable[[Options], Iterator[dict[str, Any]]]


def _model(name: str, options: Options) -> Any:
    from jina_jax.config import BertConfig, ModernBertConfig, T5Config

    t5: dict[str, Any] = {"d_model": 768, "d_ff": 3072, "num_layers": 12, "num_heads": 12}
    bert: dict[str, Any] = {"hidden_size": 768, "num_hidden_layers": 12, "intermediate_size": 3072}
    none: dict[str, Any] = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    shapes: dict[str, Any] = {
        "t5_small": T5Config(dropout_rate=0.0),
        "t5_base": T5Config(dropout_rate=0.0, **t5),
        "bert_base": BertConfig(num_attention_heads=12, **bert, **none),
        "modernbert_base": ModernBertConfig(),
    }
    shape = shapes[name]
    if options.toy:
        tiny: dict[str, Any] = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
                "intermediate_size": 128, "vocab_size": 64000}  # fmt: skip
        if isinstance(shape, T5Config):
            tiny = {"d_model": 64, "d_kv": 16, "d_ff": 128, "num_layers": 2, "num_heads": 4}
        shape = replace(shape, **tiny)
    return replace(shape, compute_dtype="bfloat16")


def _lengths(options: Options, length: int) -> np.ndarray:
    """Int [pairs, 2]: tokens of each text."""
    pairs = options.pairs(length)
    if length:
        return np.full((pairs, 2), length)
    from train_speed import standard_library

    from jina_jax.sources.pydocs import read_pydocs
    from jina_jax.types import Pair

    found = []
    for record in read_pydocs(standard_library()):
        if isinstance(record, Pair):
            found.append([len(t.split()) * 4 // 3 + 2 for t in (record.query, record.positive)])
        if len(found) == (200 if options.toy else 20_000):
            break
    chosen = np.random.default_rng(0).choice(len(found), pairs)
    return np.minimum(np.array(found)[chosen], options.longest)


def _kernels(options: Options) -> Iterator[dict[str, Any]]:
    """Values and gradients of each kernel beside plain attention in float32."""
    import jax
    import jax.numpy as jnp

    from jina_jax.model.attention import Mask, attend_with

    kernels = ("by_row", "interpreted") if options.toy else ("at_once", "cudnn")
    for length, dtype, has_bias in (
        (n, d, b) for n in options.lengths if n for d in ("float32", "bfloat16") for b in (0, 1)
    ):
        rows, heads, width = (2, 4, 32) if options.toy else (32, 12, 64)
        keys = jax.random.split(jax.random.key(0), 6)
        q, k, v, target = (jax.random.normal(key, (rows, length, heads, width)) for key in keys[:4])
        bias_HD = jax.random.normal(keys[4], (heads, 2 * length - 1)) if has_bias else None
        mask = Mask(jnp.sort(jax.random.randint(keys[5], (rows, length), 0, 4), axis=1))

        def run(
            kernel: Any, dtype: str, given: Any = (q * width**-0.5, k, v),
            bias_HD: Any = bias_HD, mask: Any = mask, target: Any = target, length: int = length,
        ) -> tuple[list[np.ndarray], float]:  # fmt: skip
            index = np.arange(length)
            places = index[None] - index[:, None] + length - 1

            def loss(q_RLHK: Any, k_RLHK: Any, v_RLHK: Any, bias_HD: Any) -> Any:
                bias = bias_HD
                if bias_HD is not None and kernel != "interpreted":
                    bias = bias_HD[:, places]
                mixed = attend_with(kernel, q_RLHK, k_RLHK, v_RLHK, mask, bias)
                return jnp.sum(mixed.astype(jnp.float32) * target)

            wanted = (0, 1, 2) if bias_HD is None else (0, 1, 2, 3)
            step = jax.jit(jax.value_and_grad(loss, wanted))
            cast = [x.astype(dtype) for x in given]
            found = jax.block_until_ready(step(*cast, bias_HD))
            began = time.perf_counter()
            jax.block_until_ready([step(*cast, bias_HD) for _ in range(options.steps)])
            seconds = (time.perf_counter() - began) / options.steps
            return [np.asarray(x, np.float32) for x in jax.tree.leaves(found)], seconds

        with jax.default_matmul_precision("highest"):
            exact, _ = run("at_once", "float32")
        for kernel in kernels:
            if kernel == "cudnn" and dtype == "float32":
                continue  # It takes bfloat16 alone.
            found, seconds = run(kernel, dtype)
            errors = [
                float(np.linalg.norm(a - b) / np.linalg.norm(b))
                for a, b in zip(found, exact, strict=True)
            ]
            yield {
                "what": f"attention {kernel}, {dtype}, {length} tokens"
                + (", position bias" if has_bias else ""),
                "ms": seconds * 1e3, "error": max(errors),
            }  # fmt: skip


def _median_s(work: Callable[[], object], options: Options) -> float:
    """Seconds of a call, after two that compile and warm up."""
    seconds = []
    for _ in range(options.steps + 2):
        began = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - began)
    return float(np.median(seconds[2:]))


def _peak(options: Options) -> float:
    """FLOP/s in bfloat16; of a CPU one that means nothing."""
    import jax

    from jina_jax.devices.accelerators import accelerator

    known = accelerator(jax.devices()[0].device_kind)
    return known.bfloat16_flops_per_s if known else 1e12


def _ours(name: str, options: Options, cached: bool = False) -> Iterator[dict[str, Any]]:
    import jax

    from jina_jax.config import FeedConfig, LossConfig, OptimConfig, RunConfig, TrainConfig
    from jina_jax.devices.mesh import make_mesh
    from jina_jax.feed.batch import pack_batch
    from jina_jax.model.encoder import embed, init_params
    from jina_jax.model.flops import Work, encoder_flops, step_flops
    from jina_jax.shards.array_record import decode_records, encode_record
    from jina_jax.train.step import attention_kernel, init_state, make_train_step

    rng, model, mesh = np.random.default_rng(0), _model(name, options), make_mesh()
    lengths = (options.lengths[0],) if cached else options.lengths
    for length in lengths:
        length_P2 = _lengths(options, length)
        if cached:
            length_P2 = np.full((64 if options.toy else 16384, 2), length)
        pairs, row_tokens = len(length_P2), length or options.longest
        cache_rows = (16 if options.toy else 1024) if cached else 0
        config = RunConfig(
            name="gpu",
            feed=FeedConfig(
                pairs, row_tokens, row_tokens, row_tokens=row_tokens,
                rows_multiple=max(cache_rows, 8), groups=1,
            ),
            model=model,
            loss=LossConfig(mask_false_negatives=False),
            optim=OptimConfig(learning_rate=1e-5, schedule="constant", warmup_steps=0),
            train=TrainConfig(num_steps=1000, grad_cache_rows=cache_rows),
        )  # fmt: skip
        records = decode_records(
            [
                encode_record([rng.bytes(16) for _ in of], [rng.integers(5, 8000, n) for n in of])
                for of in length_P2
            ]
        )
        batch = pack_batch(records, config.feed)
        params = init_params(model, jax.random.key(0))
        step, state = make_train_step(config, mesh), init_state(config, params)

        def train(step: Any = step, batch: Any = batch) -> None:
            nonlocal state
            state, metrics = step(state, batch)
            float(metrics["loss"])

        seconds = _median_s(train, options)
        texts = Work(int(length_P2.sum()), int((length_P2**2).sum()))
        needed = step_flops(
            model, rows=texts, texts=texts, queries=pairs, keys=pairs, encoded_again=0
        )
        what = "cached gradients" if cached else "train"
        stats = jax.devices()[0].memory_stats() or {}
        row = {
            "what": f"{name} {what}, {_named(length)}", "side": "ours",
            "kernel": attention_kernel(config, mesh)[0],
            "pairs": pairs, "pairs_per_s": pairs / seconds,
            "mfu": needed.text / seconds / _peak(options),
            "peak_gib": stats.get("peak_bytes_in_use", 0) / 2**30,
        }  # fmt: skip
        yield row
        if cached:
            return
        encode = jax.jit(
            lambda params, ids, segments, config=config: embed(
                config.model, config.pooling, params, ids, segments, config.feed.texts_per_row
            )
        )
        arrays = state.params, batch.ids_RL, batch.segments_RL

        def encoded(encode: Any = encode, arrays: Any = arrays) -> None:
            encode(*arrays).block_until_ready()

        seconds = _median_s(encoded, options)
        needed_flops = encoder_flops(model, texts)
        yield row | {
            "what": f"{name} encode, {_named(length)}",
            "pairs_per_s": pairs / seconds,
            "mfu": needed_flops / seconds / _peak(options),
        }


def _theirs(name: str, options: Options, cached: bool = False) -> Iterator[dict[str, Any]]:
    import torch
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.losses import (
        CachedMultipleNegativesRankingLoss,
        MultipleNegativesRankingLoss,
    )
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from transformers import PreTrainedTokenizerFast

    from jina_jax.model.encoder import config_to_huggingface
    from jina_jax.model.flops import Work, encoder_flops, step_flops

    model, rng = _model(name, options), np.random.default_rng(0)
    is_flat = importlib.util.find_spec("flash_attn") is not None and not options.toy
    with tempfile.TemporaryDirectory() as folder:
        document = config_to_huggingface(model) | {"vocab_size": model.vocab_size}
        path = Path(folder) / "base"
        path.mkdir()
        (path / "config.json").write_text(json.dumps(document))
        pad, unknown = "[PAD]", "[UNK]"
        words = {f"w{n}": n for n in range(100)} | {pad: 100, unknown: 101}
        PreTrainedTokenizerFast(
            tokenizer_object=Tokenizer(WordLevel(words, unknown)), pad_token=pad,
            unk_token=unknown,
        ).save_pretrained(path)  # fmt: skip
        import transformers

        random = getattr(transformers, document["architectures"][0])
        random(transformers.AutoConfig.from_pretrained(path)).save_pretrained(path)
        encoder = SentenceTransformer(
            str(path),
            device=options.device,
            model_kwargs={"attn_implementation": "flash_attention_2" if is_flat else "sdpa"}
            if not options.toy
            else {},
        )
    lengths = (options.lengths[0],) if cached else options.lengths
    for length in lengths:
        length_P2 = _lengths(options, length)
        kind: Any = MultipleNegativesRankingLoss
        options_of_kind: dict[str, Any] = {}
        if cached:
            length_P2 = np.full((64 if options.toy else 16384, 2), length)
            kind = CachedMultipleNegativesRankingLoss
            options_of_kind = {"mini_batch_size": 16 if options.toy else 1024}
        loss = kind(
            encoder, scale=20.0, directions=("query_to_doc", "doc_to_query"),
            partition_mode="per_direction", **options_of_kind,
        )  # fmt: skip
        optimizer = torch.optim.AdamW(encoder.parameters(), lr=1e-5, fused=not options.toy)
        features = []
        for column in length_P2.T:
            mask = np.arange(column.max())[None] < column[:, None]
            ids = np.where(mask, rng.integers(5, 8000, mask.shape), 0)
            found = {"input_ids": ids, "attention_mask": mask.astype(np.int64)}
            features.append({k: torch.tensor(v).to(options.device) for k, v in found.items()})
        pairs = len(length_P2)

        def finish() -> None:
            if not options.toy:
                torch.cuda.synchronize()

        def train(loss: Any = loss, optimizer: Any = optimizer, features: Any = features) -> None:
            optimizer.zero_grad()
            with torch.autocast(options.device, torch.bfloat16):
                value = loss([dict(f) for f in features], None)
            value.backward()
            optimizer.step()
            finish()

        def encode(features: Any = features) -> None:
            with torch.no_grad(), torch.autocast(options.device, torch.bfloat16):
                for feature in features:
                    encoder(dict(feature))
            finish()

        if not options.toy:
            torch.cuda.reset_peak_memory_stats()
        encoder.train()
        texts = Work(int(length_P2.sum()), int((length_P2**2).sum()))
        needed = step_flops(
            model, rows=texts, texts=texts, queries=pairs, keys=pairs, encoded_again=0
        )
        seconds = _median_s(train, options)
        peak = 0 if options.toy else torch.cuda.max_memory_allocated()
        what = "cached gradients" if cached else "train"
        row = {
            "what": f"{name} {what}, {_named(length)}", "side": "sentence-transformers",
            "kernel": "flash_attention_2" if is_flat else "sdpa", "pairs": pairs,
            "pairs_per_s": pairs / seconds, "mfu": needed.text / seconds / _peak(options),
            "peak_gib": peak / 2**30,
        }  # fmt: skip
        yield row
        if cached:
            return
        encoder.eval()
        seconds = _median_s(encode, options)
        yield row | {
            "what": f"{name} encode, {_named(length)}", "pairs_per_s": pairs / seconds,
            "mfu": encoder_flops(model, texts) / seconds / _peak(options),
        }  # fmt: skip


def _named(length: int) -> str:
    return f"{length} tokens" if length else "real lengths"


def _cases(options: Options) -> list[Case]:
    cases = [Case("kernels", 60, _kernels)]
    for name in MODELS[::2] if options.toy else MODELS:
        for side, how in (("ours", _ours), ("theirs", _theirs)):
            cases.append(Case(f"{name}-{side}", 45, partial(how, name)))
    for side, how in (("ours", _ours), ("theirs", _theirs)):
        cases.append(Case(f"cached-{side}", 30, partial(how, "t5_small", cached=True)))
    return cases


def _rows(out: Path) -> list[dict[str, Any]]:
    path = out / "rows.jsonl"
    if not path.exists():
        return []
    # A last line that was cut off is of a case that will run again.
    lines = path.read_text(encoding="utf-8").split("\n")[:-1]
    return [json.loads(line) for line in lines]


def _table(rows: list[dict[str, Any]], options: Options) -> str:
    device = next(row["device"] for row in rows)
    lines = [
        f"## A GPU: {device}",
        "",
        f"`python benchmarks/gpu.py OUT` · {time.strftime('%Y-%m-%d')} · bfloat16, medians of "
        f"{options.steps} steps",
        "",
        "| | side | attention | pairs/s | MFU of the texts | peak GiB |",
        "|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {r['what']} | {r['side']} | {r['kernel']} | {r['pairs_per_s']:,.0f} | {r['mfu']:.1%} | "
        f"{r['peak_gib']:.2f} |"
        for r in rows
        if "side" in r
    ]
    lines += [
        "",
        "| attention, there and back | ms | largest relative error |",
        "|---|---|---|",
    ]
    lines += [f"| {r['what']} | {r['ms']:.2f} | {r['error']:.1e} |" for r in rows if "error" in r]
    lines += ["", *[f"- not run: {r['case']}: {r['failed']}" for r in rows if "failed" in r]]
    return "\n".join(lines).rstrip() + "\n"


def _one(case: Case, options: Options) -> None:
    import jax

    jax.config.update("jax_platforms", "cpu" if options.toy else "cuda")
    device = jax.devices()[0].device_kind
    if options.toy:
        device = f"CPU ({platform.machine()}), toy sizes"
    with (options.out / "rows.jsonl").open("a", encoding="utf-8") as file:
        for row in case.run(options):
            file.write(json.dumps({"case": case.name, "device": device, **row}) + "\n")
            file.flush()
        file.write(json.dumps({"case": case.name, "device": device, "done": True}) + "\n")


def _all(options: Options) -> None:
    options.out.mkdir(parents=True, exist_ok=True)
    rows, began = _rows(options.out), time.perf_counter()
    done = {row["case"] for row in rows if row.get("done")}

    def measure(case: Case) -> None:
        expected = 6 if options.toy else case.expected_s
        if case.name in done:
            print(f"{case.name}: was measured before")
        elif options.dry_run:
            print(f"{case.name}: about {expected:.0f} s")
        elif time.perf_counter() - began + expected > options.budget_s:
            print(f"{case.name}: left for the next call, which has time for it")
        else:
            flags = ["--toy"] if options.toy else []
            command = [sys.executable, __file__, str(options.out), f"--case={case.name}", *flags]
            ended = subprocess.run([*command, f"--tokens={options.tokens}"], check=False)
            if ended.returncode:
                print(f"{case.name}: failed with {ended.returncode}")

    if not options.dry_run:
        # Rows of a case that was cut off are measured again.
        kept = "".join(json.dumps(row) + "\n" for row in rows if row["case"] in done)
        (options.out / "rows.jsonl").write_text(kept, encoding="utf-8")
    # Most of a toy is imports, and its figures may disturb each other.
    with ThreadPoolExecutor(2 if options.toy else 1) as pool:
        list(pool.map(measure, _cases(options)))
    rows = _rows(options.out)
    if options.dry_run or not rows:
        return
    latest = {(r["case"], r.get("what")): r for r in rows if not r.get("done")}
    table = _table(list(latest.values()), options)
    (options.out / "table.md").write_text(table, encoding="utf-8")
    print(table)
    if options.results is not None:
        with options.results.open("a", encoding="utf-8") as file:
            file.write("\n" + table)


def main() -> None:
    """Runs the cases that are missing, or one."""
    options = tyro.cli(Options, description=__doc__)
    if options.case:
        _one(next(case for case in _cases(options) if case.name == options.case), options)
    else:
        _all(options)


if __name__ == "__main__":
    main()
