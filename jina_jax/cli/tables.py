"""Tables and lists for the terminal."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from jina_jax.checkpoint.checkpoints import Checkpoints
from jina_jax.config.files import RUN_FILE, read_run
from jina_jax.errors import UserError
from jina_jax.inference.search import Hit
from jina_jax.mine.run import MineReport
from jina_jax.mteb.published import Comparison, TaskScore, averages
from jina_jax.negation.build import NegationReport
from jina_jax.prepare.explain import explain, score_histograms, text_histograms
from jina_jax.prepare.ledger import ledger_counts, ledger_samples
from jina_jax.shards.manifest import MANIFEST_FILE, Manifest, load_manifest
from jina_jax.shards.remote import open_source, shards_url
from jina_jax.system.terminal import clip, table
from jina_jax.system.untrusted import read_json
from jina_jax.text.tokenizer import load_tokenizer
from jina_jax.train.metrics.writer import read_metrics


def funnel(manifest: Manifest) -> str:
    """How many records of each source became training pairs, and what became of the others."""
    counts = [(s.name, s.read, (s.bad, s.dropped), (s.eval, s.train)) for s in manifest.sources]
    return _by_reason(counts, "evaluation", "training")


def _by_reason(
    counts: Sequence[tuple[str, int, Sequence[Mapping[str, int]], Sequence[int]]], *kept: str
) -> str:
    """A row for each source: its name, what was read, lost for each reason, and kept."""
    reasons = sorted({reason for _, _, lost, _ in counts for of in lost for reason in of})
    rows = []
    for name, read, lost, left in counts:
        by_reason = [sum(of.get(reason, 0) for of in lost) for reason in reasons]
        rows.append([name, *[f"{n:,}" for n in (read, *by_reason, *left)]])
    return table(["source", "read", *reasons, *kept], rows)


def leaks(manifest: Manifest) -> str:
    """How much of each evaluation set was found in the sources."""
    columns = ("texts", "texts_found", "records_dropped")
    rows = [[task, *[f"{found[c]:,}" for c in columns]] for task, found in manifest.leaks.items()]
    return table(["evaluation set", "texts", "found in sources", "records dropped"], rows)


def scores(results: Mapping[str, Mapping[str, Mapping[str, float]]], what: str) -> str:
    """Task by task, what each system scored (in percent).

    Args:
      results: task → system → measure → value in 0..1.
      what: heads the table.
    """
    tasks = [t for t in results if t != "average"]
    shown = tasks if len(tasks) == 1 else [*tasks, "average"]
    measures = list(next(iter(results[shown[0]].values())))
    rows = [
        [f"{task} · {system}", *[f"{100 * values[m]:.1f}" for m in measures]]
        for task in shown
        for system, values in results[task].items()
    ]
    return table([f"{what} (%)", *measures], rows)


def negations(report: NegationReport) -> str:
    """How many triplets were made of each source, and why others were not."""
    counts = [(s.name, s.read, (s.bad, s.rejected), (s.triplets,)) for s in report.sources]
    hint = [
        f"{s.name}: the rules, which suit English sentences, fit few of its positives; "
        f"negation.method=endpoint with negation.endpoint has a chat model write them"
        for s in report.sources
        if 2 * s.rejected.get("no_rule", 0) > s.read
    ]
    return "\n".join([_by_reason(counts, "triplets"), *hint])


def mined(report: MineReport) -> str:
    """What was mined for each source, and how many passages each rule dropped."""
    rows = [
        [s.name, *[f"{n:,}" for n in (s.pairs, s.passages, *s.dropped.values(), s.triplets,
                                       s.pairs_without_negative)]]
        for s in report.sources
    ]  # fmt: skip
    dropped = [f"dropped: {rule}" for rule in report.sources[0].dropped]
    return table(["source", "pairs", "passages", *dropped, "triplets", "pairs without"], rows)


def comparison(scores: Sequence[TaskScore], beside: Comparison) -> str:
    """Scores on tasks of MTEB, with published ones beside them (in percent).

    Args:
      scores: of `run_suite`.
      beside: what `compare` made of them.
    """
    models = list(dict.fromkeys(model for row in beside.rows for model in row.published))
    has_map = any(one.map_at_10 is not None for one in scores)
    rows = [
        [row.group, row.task, row.measure, f"{row.ours:.2f}"]
        + [f"{row.published[m]:.2f}" if m in row.published else "" for m in models]
        + (["" if one.map_at_10 is None else f"{one.map_at_10:.2f}"] if has_map else [])
        for row, one in zip(beside.rows, scores, strict=True)
    ]
    rest = [""] * (len(models) + has_map)
    rows += [[g, "average", "", f"{mean:.2f}", *rest] for g, mean in averages(scores).items()]
    header = ["group", "task", "measure", "ours", *models, *(["MAP@10 of ours"] if has_map else [])]
    parts = [table(header, rows)]
    if beside.means:
        means = [
            [f"{m.group} · {m.model}", str(m.tasks), f"{m.ours:.2f}", f"{m.published:.2f}",
             f"{m.ours - m.published:+.2f}"]
            for m in beside.means
        ]  # fmt: skip
        header = ["means of the tasks that both have", "tasks", "ours", "published", "difference"]
        parts.append(table(header, means))
        sources = dict.fromkeys(row.source for row in beside.rows if row.source)
        parts.append("\n".join([f"published: {s}" for s in sources] + [*beside.notes]))
    return "\n\n".join(parts)


def hits(found: Mapping[str, Sequence[Hit]]) -> str:
    """Queries, each with its passages and their cosines."""
    blocks = [
        "\n".join([f"? {query}", *[f"  {hit.score:.3f}  {clip(hit.passage)}" for hit in passages]])
        for query, passages in found.items()
    ]
    return "\n\n".join(blocks)


def inspect(folder: Path, samples: int) -> str:
    """What a prepared folder or a run folder holds.

    Raises: UserError when it is neither.
    """
    if (folder / MANIFEST_FILE).is_file():
        return _inspect_data(folder, samples)
    if (folder / RUN_FILE).is_file():
        return _inspect_run(folder, samples)
    raise UserError(
        f"{folder} is neither a prepared folder (manifest.json) nor a run folder (config.json)"
    )


def prepared_folder(folder: Path) -> Path:
    """A prepared folder, or the one that a run folder's configuration names.

    Raises: UserError when the configuration of a run cannot be read.
    """
    if not (folder / MANIFEST_FILE).is_file() and (folder / RUN_FILE).is_file():
        return read_run(folder).data_path
    return folder


def _inspect_data(folder: Path, samples: int) -> str:
    manifest = load_manifest(folder)
    tokenizer = load_tokenizer(folder / "tokenizer")
    lengths = [
        [f"{s.name} · {name}", f"{stats.mean:.1f}", str(stats.p50), str(stats.p90), str(stats.p99)]
        for s in manifest.sources
        for name, stats in (("query", s.query_tokens), ("positive", s.positive_tokens))
    ]
    parts = [
        funnel(manifest),
        table(["tokens per text", "mean", "median", "90%", "99%"], lengths),
    ]
    beside = [
        f"{s.name}: {', '.join(has)}"
        for s in manifest.sources
        if (has := ["scored pairs"] * (s.record == "scored") + ["labels"] * s.has_labels)
    ]
    if manifest.guide is not None:
        beside.append(
            f"guide: {manifest.guide.model}, {manifest.guide.dims:,} bytes a text, of the shards' "
            f"{_bytes_a_record(manifest):,.0f} a record"
        )
    if beside:
        parts.append("\n".join(beside))
    if manifest.leaks:
        parts.append(leaks(manifest))
    if histograms := score_histograms(manifest):
        parts.append(text_histograms(histograms))
    for source in manifest.sources:
        records = open_source(folder, source).read(range(min(samples, source.records)))
        kept = [
            "\n".join(
                [
                    f"  {mark} {clip(tokenizer.decode(records.text(i, t).tolist()))}"
                    for t, mark in enumerate("?+")
                ]
                + ([] if records.golds_N is None else [f"  = {records.golds_N[i]:g}"])
            )
            for i in range(len(records))
        ]
        scores = "" if records.golds_N is None else ", = score"
        parts.append(
            f"{source.name}: kept, for example (? query, + positive{scores})\n" + "\n".join(kept)
        )
    if shards_url(folder):  # With them the ledger stayed there.
        return "\n\n".join(parts)
    for (source_name, reason), count in ledger_counts(folder).items():
        dropped = ledger_samples(folder, source=source_name, reason=reason, most=samples)
        lines = [f"{source_name}: {count:,} dropped as {reason}, for example"]
        for row in dropped:
            lines.append(f"  {row.file}:{row.row} {clip(row.detail)}".rstrip())
            lines += [
                f"    {mark} {clip(text)}"
                for mark, text in (("?", row.query), ("+", row.positive))
                if text
            ]
        parts.append("\n".join(lines))
    return "\n\n".join(parts)


def _bytes_a_record(manifest: Manifest) -> float:
    shards = [shard for source in manifest.sources for shard in source.shards]
    return sum(shard.size_bytes for shard in shards) / sum(shard.records for shard in shards)


def _inspect_run(folder: Path, samples: int) -> str:
    config = read_run(folder)
    lines = read_metrics(folder / "metrics.jsonl")
    parts = [f"run {config.name}"]
    if config.train.ema_decay:
        parts.append(
            f"the model is the average of the parameters at decay {config.train.ema_decay:g} "
            f"(train.ema_decay)"
        )
    checkpoints = Checkpoints(config.checkpoint_path)
    if checkpoints.steps and (merged := checkpoints.merged(checkpoints.steps[-1])):
        parts.append(str(merged))
    if lines:
        # At most ten, evenly spread, the first and the last among them.
        at = np.unique(np.linspace(0, len(lines) - 1, 10).round().astype(int))
        rows = [
            [
                str(v["step"]), f"{v['loss']:.4f}",
                f"{v['accuracy']:.3f}" if "accuracy" in v else "",
                f"{v['learning_rate']:.2e}", f"{v['pairs_per_s']:.0f}",
            ]
            for v in (lines[i] for i in at)
        ]  # fmt: skip
        parts.append(table(["step", "loss", "accuracy", "learning rate", "pairs/s"], rows))
    for name, what in (("evaluation", "retrieval"), ("negation", "negation")):
        path = folder / f"{name}.json"
        if path.is_file():
            parts.append(scores(read_json(path, finite=False), what))
    if (config.data_path / MANIFEST_FILE).is_file():
        parts.append(_inspect_data(config.data_path, samples))
    return "\n\n".join(parts)


def fates(folder: Path, text: str) -> str:
    """What became of every record of a prepared folder that holds the text."""
    lines = []
    for fate in explain(folder, text):
        line = f"{fate.source}: its {fate.text} was "
        if fate.dropped is None:
            line += f"{fate.fate.replace('_', ' ')}: record {fate.number} of {fate.file}"
        else:
            row = fate.dropped
            line += f"dropped as {row.reason} ({row.stage}): {row.file}:{row.row} {row.detail}"
        lines.append(line.rstrip())
    return "\n".join(lines) or f"no record of {folder} holds this text: {clip(text)}"
