"""Every value a run depends on, as frozen dataclasses.

A run is one short Python file with a `get_config()` that returns a `RunConfig`; any field can be
changed on the command line (`--optim.learning-rate 3e-4`). The resolved values are printed, saved
with each checkpoint and compared on resume. Nothing that changes a result is read from anywhere
else: no environment variable, no default hidden in code.

Fields marked `changeable` may differ between a run and its resumption; all others may not.
"""

import dataclasses
import importlib.util
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from jina_jax.errors import UserError
from jina_jax.filter_config import (
    DecontaminationConfig,
    LanguageConfig,
    NearDuplicateConfig,
    filter_problems,
)


def _changeable(default: Any) -> Any:
    return field(default=default, metadata={"changeable": True})


@dataclass(frozen=True)
class SourceConfig:
    """Where pairs or triplets come from."""

    name: str
    """Names the source in shards, metrics and reports: letters, digits, '_' and '-'."""
    kind: Literal["jsonl", "parquet", "csv", "tsv", "text", "pydocs", "tfds", "hf"] = "jsonl"
    """File format (text also as .gz or .zst; `text` is lines for an extractor), `tfds` or `hf` for
    a data set of TFDS or Hugging Face, or `pydocs`: docstrings of installed packages."""
    paths: tuple[str, ...] = ()
    """Files or globs. For `pydocs`: top-level packages to read; empty reads all installed ones.
    For `tfds`: the data folder; empty takes TFDS's own."""
    dataset: str = ""
    """For `tfds` and `hf`: name or id of the data set, or the folder of a local one."""
    subset: str = ""
    """For `tfds` and `hf`: configuration of the data set."""
    split: str = "train"
    """For `tfds` and `hf`: split of the data set."""
    revision: str = ""
    """For `hf`: commit, branch or tag. For `tfds`: version."""
    extractor: str = ""
    """How texts are taken out of a record that is more than two fields (data/extract.py lists
    them); empty takes the fields named below. One that gives triplets wants a `negative_field`,
    whatever its name. Not for csv, tsv and pydocs."""
    query_field: str = "query"
    """Field or column that holds the query."""
    positive_field: str = "positive"
    """Field or column that holds the positive passage."""
    negative_field: str = ""
    """Field or column that holds the hard negative of a triplet; empty for pairs. Triplets are not
    deduplicated, and no filter for pairs looks at them."""
    weight: float = 1.0
    """Relative share of batches drawn from this source."""
    licence: str = "unknown"
    """Licence of the text; copied to the manifest and the model card."""
    limit: int | None = None
    """Read at most this many records."""


@dataclass(frozen=True)
class TokenizerConfig:
    """The SentencePiece vocabulary."""

    source: str = "google-t5/t5-small"
    """A `spiece.model` file, a folder that holds one, a Hugging Face id, or `train`."""
    vocab_size: int = 8000
    """Pieces to learn when `source` is `train` (unigram; pad 0, eos 1, unk 2)."""
    train_texts: int = 1_000_000
    """Learn from at most this many texts, evenly spread over the corpus."""


@dataclass(frozen=True)
class LengthConfig:
    """Bounds on the length of each text of a pair, both inclusive; none by default."""

    min_characters: int = 0
    max_characters: int | None = None
    min_words: int = 0
    """Words are what whitespace separates."""
    max_words: int | None = None


@dataclass(frozen=True)
class EngineConfig:
    """What runs the tasks of preparation. The results do not depend on it."""

    kind: Literal["local", "ray"] = _changeable("local")
    """`local` uses processes of this machine, `ray` a cluster whose nodes share a file system."""
    workers: int = _changeable(0)
    """Processes of the local engine; 1 works in this process, 0 takes one a core."""
    ray_address: str = _changeable("")
    """Address of a Ray cluster; empty starts one on this machine."""


@dataclass(frozen=True)
class DataConfig:
    """Preparation: from sources to shuffled shards of token ids."""

    sources: tuple[SourceConfig, ...] = ()
    tokenizer: TokenizerConfig = TokenizerConfig()
    max_text_tokens: int = 512
    """Texts are cut to this many tokens, end-of-sequence included, before they are stored."""
    eval_pairs: int = 1000
    """Pairs held out per source; no text of theirs occurs in training."""
    language: LanguageConfig = LanguageConfig()
    near_duplicates: NearDuplicateConfig = NearDuplicateConfig()
    decontamination: DecontaminationConfig = DecontaminationConfig()
    max_bad_share: float = 0.01
    """Stop when more than this share of a source's records (after 1,000) cannot be read."""
    records_per_shard: int = 100_000
    """Aim for this many training records in a shard file."""
    seed: int = 0
    """Seed of the global shuffle and of the evaluation split."""
    source_priority: tuple[str, ...] = ()
    """Names of sources, the first keeps what several hold; the others follow as listed."""
    lengths: LengthConfig = LengthConfig()
    engine: EngineConfig = EngineConfig()


@dataclass(frozen=True)
class FeedConfig:
    """From shards to packed global batches."""

    global_batch_size: int = 64
    """Pairs in a batch over all devices; each pair's negatives are the rest of the batch."""
    query_tokens: int = 64
    """Queries are cut to this many tokens."""
    positive_tokens: int = 128
    """Positives are cut to this many tokens."""
    row_tokens: int = 128
    """Length of a packed row; several texts share a row and do not see each other."""
    texts_per_row: int = 16
    """Most texts packed into one row; 1 pads every text to a row of its own."""
    rows_multiple: int = 8
    """Rows of a batch are rounded up to a multiple of this; devices must divide it."""
    workers: int = _changeable(0)
    """Processes that read and pack ahead; 0 uses threads of the trainer's process."""
    prefetch_batches: int = _changeable(8)
    """Batches kept ready ahead of the step (per worker)."""


@dataclass(frozen=True)
class T5Config:
    """Shape of a T5 encoder (Raffel et al. 2020), in the names of Hugging Face's `T5Config`."""

    vocab_size: int = 32128
    d_model: int = 512
    d_kv: int = 64
    d_ff: int = 2048
    num_layers: int = 6
    num_heads: int = 8
    relative_attention_num_buckets: int = 32
    relative_attention_max_distance: int = 128
    dropout_rate: float = 0.1
    layer_norm_epsilon: float = 1e-6
    feed_forward_proj: Literal["relu", "gated-gelu"] = "relu"
    """`relu` is T5 v1.0, `gated-gelu` is T5 v1.1."""
    compute_dtype: Literal["float32", "bfloat16"] = "float32"
    """Matrix products run in this dtype; parameters, norms, softmax and loss stay float32."""


@dataclass(frozen=True)
class BertConfig:
    """Shape of a BERT encoder (Devlin et al. 2019), in the names of Hugging Face's `BertConfig`."""

    vocab_size: int = 30522
    hidden_size: int = 384
    num_hidden_layers: int = 6
    num_attention_heads: int = 12
    intermediate_size: int = 1536
    max_position_embeddings: int = 512
    type_vocab_size: int = 2
    layer_norm_eps: float = 1e-12
    compute_dtype: Literal["float32", "bfloat16"] = "float32"
    """Matrix products run in this dtype; parameters, norms and softmax stay float32."""


@dataclass(frozen=True)
class ConsistencyConfig:
    """Keeps a pair whose passage is among the best of its query in a sample of the source."""

    enabled: bool = True
    model: str = "sentence-transformers/all-MiniLM-L6-v2"
    """A BERT sentence encoder: a Hugging Face folder or id with safetensors."""
    top_k: int = 2
    """Keep a pair when fewer than this many sampled passages score above its own."""
    sample_size: int = 1_000_000
    """Pairs of the source whose passages are compared; all of them where there are fewer."""
    seed: int = 0
    """Seed of the sample."""
    tie_tolerance: float = 1e-6
    """Cosines this close count as equal, and an equal passage is not above. Rounding moves equal
    embeddings by about 1e-7 in float32; with bfloat16 encoders by about 1e-3."""
    query_block: int = _changeable(1024)
    """Queries compared at once, over all devices."""
    sample_block: int = _changeable(4096)
    """Sampled passages compared at once on each device."""


@dataclass(frozen=True)
class MarginConfig:
    """Keeps a triplet whose positive a cross-encoder scores above its negative by a margin."""

    enabled: bool = True
    model: str = "cross-encoder/ms-marco-MiniLM-L-6-v2"
    """A BERT cross-encoder with one logit: a Hugging Face folder or id with safetensors."""
    threshold: float = 0.2
    """Keep a triplet when r(query, positive) - r(query, negative) exceeds this."""
    scale: Literal["logit", "sigmoid"] = "logit"
    """What r is. The paper gives the threshold without saying which."""


@dataclass(frozen=True)
class LossConfig:
    """The pair loss of Jina Embeddings (arXiv 2307.11224, section 3)."""

    temperature: float = 0.05
    mask_false_negatives: bool = True
    """Leave out of the denominators texts known to match (same hash)."""


@dataclass(frozen=True)
class OptimConfig:
    """AdamW with warm-up. The paper gives no values for these: the defaults are ours."""

    learning_rate: float = 1e-3
    """Peak learning rate."""
    schedule: Literal["constant", "linear", "cosine", "rsqrt"] = "cosine"
    """Course after the warm-up; `linear` and `cosine` end at `final_share` of the peak."""
    warmup_steps: int = 100
    final_share: float = 0.0
    weight_decay: float = 0.01
    b1: float = 0.9
    b2: float = 0.999
    eps: float = 1e-8
    clip_norm: float = 1.0
    """Gradients are scaled down to this global norm."""


@dataclass(frozen=True)
class TrainConfig:
    """The training loop."""

    num_steps: int = 1000
    seed: int = 0
    """Seed of initial weights, dropout and batch order."""
    initial_weights: str = ""
    """A Hugging Face `T5EncoderModel` folder or id (safetensors); empty starts at random."""
    devices: int | None = _changeable(None)
    """Use this many local devices; all of them by default."""
    log_every_steps: int = _changeable(10)
    checkpoint_every_steps: int = _changeable(200)
    keep_checkpoints: int = _changeable(3)


@dataclass(frozen=True)
class EvaluateConfig:
    """Retrieval on the held-out split."""

    top_k: int = _changeable(10)
    """Cut-off of nDCG@k and recall@k."""
    batch_rows: int = _changeable(32)
    """Packed rows encoded at once."""


@dataclass(frozen=True)
class RunConfig:
    """One run, from raw text to an exported model."""

    name: str
    """Names the model card and the run folder."""
    workdir: str = _changeable("")
    """Everything is written below this folder; empty means `runs/NAME`."""
    data_dir: str = _changeable("")
    """Prepared shards, when several runs share them; empty means `WORKDIR/data`."""
    data: DataConfig = DataConfig()
    feed: FeedConfig = FeedConfig()
    model: T5Config = T5Config()
    loss: LossConfig = LossConfig()
    optim: OptimConfig = OptimConfig()
    train: TrainConfig = TrainConfig()
    evaluate: EvaluateConfig = EvaluateConfig()

    @property
    def run_path(self) -> Path:
        """Folder that everything of this run is written below."""
        return Path(self.workdir or f"runs/{self.name}").absolute()

    @property
    def data_path(self) -> Path:
        """Folder of the prepared shards."""
        return Path(self.data_dir).absolute() if self.data_dir else self.run_path / "data"

    @property
    def checkpoint_path(self) -> Path:
        """Folder of the Orbax checkpoints."""
        return self.run_path / "checkpoints"

    @property
    def export_path(self) -> Path:
        """Folder of the exported Hugging Face model."""
        return self.run_path / "export"


def config_names() -> list[str]:
    """Names of the configs that ship with the package."""
    spec = importlib.util.find_spec("jina_jax.configs")
    folders = spec.submodule_search_locations if spec else None
    return sorted(p.stem for d in folders or () for p in Path(d).glob("[a-z]*.py"))


def load_config(name_or_path: str) -> RunConfig:
    """Runs `get_config()` of a config file.

    Args:
      name_or_path: a Python file, or the name of a shipped config such as `demo`.
    Raises: UserError when there is no such file, or it gives no RunConfig.
    """
    if name_or_path in config_names():
        module = importlib.import_module(f"jina_jax.configs.{name_or_path}")
    else:
        path = Path(name_or_path)
        if path.suffix != ".py" or not path.is_file():
            raise UserError(
                f"no config {name_or_path!r}: give a Python file with get_config(), "
                f"or one of: {', '.join(config_names())}"
            )
        spec = importlib.util.spec_from_file_location(path.stem, path)
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        try:
            spec.loader.exec_module(module)
        except Exception as error:
            raise UserError(f"{path} failed to load: {type(error).__name__}: {error}") from error
    config = getattr(module, "get_config", lambda: None)()
    if not isinstance(config, RunConfig):
        raise UserError(f"{name_or_path}: get_config() must return a jina_jax.config.RunConfig")
    return config


def _positive(section: str, config: Any, *names: str) -> Iterator[str]:
    for name in names:
        if getattr(config, name) <= 0:
            yield f"{section}.{name}={getattr(config, name)} must be above 0"


def _source_problems(which: str, source: SourceConfig) -> Iterator[str]:
    if source.kind in ("tfds", "hf"):
        if not source.dataset:
            yield f"{which} is of kind {source.kind} and names no dataset"
        if not source.split:
            yield f"{which} has an empty split; data sets mostly have train"
    elif source.kind != "pydocs" and not source.paths:
        yield f"{which} has no paths"
    if source.kind == "text" and not source.extractor:
        yield f"{which} is of kind text: its lines need an extractor"
    if source.extractor and source.kind in ("csv", "tsv", "pydocs"):
        yield f"{which}: an extractor reads no {source.kind}; leave it empty"


def _problems(config: RunConfig) -> Iterator[str]:
    feed, model, optim = config.feed, config.model, config.optim
    for what, name in [("name", config.name)] + [
        (f"data.sources.{i}.name", s.name) for i, s in enumerate(config.data.sources)
    ]:
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]*", name):
            yield f"{what}={name!r} may hold only ASCII letters, digits, '_', '-' and '.'"
    names = [s.name for s in config.data.sources]
    for name in sorted({n for n in names if names.count(n) > 1}):
        yield f"two sources are named {name!r}: names must differ"
    for name in config.data.source_priority:
        if name not in names:
            yield f"data.source_priority: no source is named {name!r}; they are {', '.join(names)}"
    for i, source in enumerate(config.data.sources):
        yield from _source_problems(f"data.sources.{i} ({source.name})", source)
        yield from _positive(f"data.sources.{i}", source, "weight")
    if not 0 <= config.data.max_bad_share <= 1:
        yield f"data.max_bad_share={config.data.max_bad_share} must lie in 0..1"
    yield from _positive("data", config.data, "max_text_tokens", "records_per_shard")
    if config.data.max_text_tokens > 65535:
        yield f"data.max_text_tokens={config.data.max_text_tokens} must not exceed 65535"
    if config.data.engine.workers < 0:
        yield f"data.engine.workers={config.data.engine.workers} must not be negative"
    if config.data.eval_pairs < 0:
        yield f"data.eval_pairs={config.data.eval_pairs} must not be negative"
    yield from filter_problems(
        config.data.language, config.data.near_duplicates, config.data.decontamination
    )
    yield from _positive(
        "feed", feed, "global_batch_size", "query_tokens", "positive_tokens", "row_tokens",
        "texts_per_row", "rows_multiple", "prefetch_batches",
    )  # fmt: skip
    if feed.global_batch_size < 2:
        yield "feed.global_batch_size=1 leaves no in-batch negatives; use 2 or more"
    longest = max(feed.query_tokens, feed.positive_tokens)
    if longest > feed.row_tokens:
        yield f"a text of {longest} tokens does not fit feed.row_tokens={feed.row_tokens}"
    if longest > config.data.max_text_tokens:
        yield (
            f"feed wants texts of {longest} tokens but data.max_text_tokens="
            f"{config.data.max_text_tokens} are stored; raise it or lower the feed's"
        )
    yield from _positive(
        "model", model, "vocab_size", "d_model", "d_kv", "d_ff", "num_layers", "num_heads"
    )
    if not 0 <= model.dropout_rate < 1:
        yield f"model.dropout_rate={model.dropout_rate} must lie in 0..1"
    yield from _positive("loss", config.loss, "temperature")
    yield from _positive("optim", optim, "learning_rate", "clip_norm")
    yield from _positive(
        "train", config.train, "num_steps", "log_every_steps", "checkpoint_every_steps",
        "keep_checkpoints",
    )  # fmt: skip
    if optim.warmup_steps < 0 or optim.warmup_steps > config.train.num_steps:
        yield (
            f"optim.warmup_steps={optim.warmup_steps} must lie in 0..train.num_steps="
            f"{config.train.num_steps}"
        )
    yield from _positive("evaluate", config.evaluate, "top_k", "batch_rows")


def validate(config: RunConfig) -> None:
    """Checks what types cannot say.

    Raises: UserError listing every field that is wrong.
    """
    problems = list(_problems(config))
    if problems:
        raise UserError("the configuration cannot be used:\n  " + "\n  ".join(problems))


def to_json(config: Any) -> str:
    """The dataclass as JSON text with sorted keys."""
    return json.dumps(dataclasses.asdict(config), indent=2, sort_keys=True, ensure_ascii=False)


def _flatten(config: Any, prefix: str = "", changeable: bool = False) -> dict[str, Any]:
    """Field path → value, leaving out the changeable ones unless asked for."""
    flat: dict[str, Any] = {}
    for f in dataclasses.fields(config):
        value = getattr(config, f.name)
        if dataclasses.is_dataclass(value):
            flat |= _flatten(value, f"{prefix}{f.name}.", changeable)
        elif changeable or not f.metadata.get("changeable"):
            # Through JSON, so that tuples compare equal to what a checkpoint gives back.
            flat[prefix + f.name] = json.loads(json.dumps(value, default=dataclasses.asdict))
    return flat


def fingerprint_fields(config: RunConfig) -> dict[str, Any]:
    """The fields that must not change over a run, as `section.field` → JSON value."""
    return _flatten(config)


def difference(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """One line per field that differs: `optim.learning_rate: 0.001 → 0.01`."""
    missing = "(absent)"
    return [
        f"{key}: {before.get(key, missing)} → {now.get(key, missing)}"
        for key in sorted(before.keys() | now.keys())
        if before.get(key, missing) != now.get(key, missing)
    ]
