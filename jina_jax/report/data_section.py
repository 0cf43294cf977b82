"""Raw data to shards: what was read, dropped and kept, and how long the texts are."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from jina_jax.config import RunConfig
from jina_jax.prepare.explain import score_histograms
from jina_jax.prepare.ledger import has_ledger, ledger_counts, ledger_samples
from jina_jax.report.facts import RunFacts
from jina_jax.report.parts import (
    About,
    Group,
    Plot,
    Sample,
    Samples,
    Section,
    Table,
    histogram,
    stacked,
)
from jina_jax.shards.manifest import Manifest, SourceSummary
from jina_jax.shards.remote import open_source, places

SAMPLES_PER_REASON = 3
REASONS_SHOWN = 4
"""Of each source, those that took most."""
SCORES = {
    "language": "probability of a language that is not wanted",
    "consistency": "sampled passages above the own one",
    "margin": "score of the positive less that of the negative",
}
"""Filter → what its score is."""
_RUNS, _RUN_RECORDS = 8, 2500
"""Of a source the lengths of so many runs of records are read, evenly spread over its shards."""


def data_section(run: RunFacts, key: str, title: str) -> Section | None:
    """The chapter of a prepared folder; None where it is not at hand."""
    if run.manifest is None:
        return None
    folder = run.config.data_path
    groups = [
        Group("Where the records went", [_funnel(run.manifest, key), _stages(run.manifest)]),
        *_leaks(run.manifest),
        *_scores(run.manifest, key),
        Group("Lengths", _lengths(run.manifest, run.config, folder, key)),
        *_dropped(run.manifest, folder),
    ]
    read = sum(s.read for s in run.manifest.sources)
    text = (
        f"{read:,} records were read and {run.manifest.train_records:,} of them are trained on "
        f"({_percent(run.manifest.train_records, read)})."
    )
    return Section(key, title, text, groups)


def _percent(part: int, whole: int) -> str:
    return f"{100 * part / whole:.1f}%" if whole else "none"


def _words(reason: str) -> str:
    return "shares a held-out text" if reason == "held_out" else reason.replace("_", " ")


def _fates(source: SourceSummary) -> dict[str, int]:
    """What became of the records of a source; the sum is what was read."""
    lost = {_words(reason): count for reason, count in source.dropped.items()}
    bad = sum(source.bad.values())
    unreadable = {"unreadable": bad} if bad else {}
    return {"trained on": source.train, "held out": source.eval} | lost | unreadable


def _funnel(manifest: Manifest, key: str) -> Plot:
    about = About(
        f"{key}-funnel", "What became of the records",
        "For each source, the records that are trained on, held out, and dropped for a reason.",
    )  # fmt: skip
    return stacked(about, {s.name: _fates(s) for s in manifest.sources}, x_label="records")


def _stages(manifest: Manifest) -> Table:
    rows: list[list[str]] = []
    for source in manifest.sources:
        by_filter = sum(sum(stage.dropped.values()) for stage in source.stages)
        shared = source.dropped.get("held_out", 0)
        steps = {
            "unreadable": sum(source.bad.values()),
            "empty, identical, length, duplicate": sum(source.dropped.values())
            - by_filter
            - shared,
            **{f"filter: {stage.stage}": sum(stage.dropped.values()) for stage in source.stages},
            "held out for evaluation": source.eval,
            "shares a held-out text": shared,
        }
        left = source.read
        rows.append([f"{source.name} · licence: {source.licence}", "", "", f"{left:,}"])
        for name, count in steps.items():
            share, left = _percent(count, left), left - count
            rows.append([f"· {name}", f"{count:,}", share if count else "", f"{left:,}"])
    return Table("Each stage, in order", ["source and stage", "taken out", "share", "left"], rows)


def _leaks(manifest: Manifest) -> Iterator[Group]:
    if manifest.leaks:
        columns = ("texts", "texts_found", "records_dropped")
        rows = [[t, *[f"{leak[c]:,}" for c in columns]] for t, leak in manifest.leaks.items()]
        header = ["evaluation set", "texts", "found in the sources", "records dropped"]
        yield Group("Evaluation sets found in the data", [Table("Leaks", header, rows)])


def _scores(manifest: Manifest, key: str) -> Iterator[Group]:
    plots = [
        histogram(
            About(
                f"{key}-scores-{source}-{stage}", f"{source}: scores of {stage}",
                f"How many records of {source} got each score of {stage}, kept and dropped.",
            ),
            np.linspace(h.low, h.high, len(h.kept) + 1),
            {"kept": np.array(h.kept), "dropped": np.array(h.dropped)},
            x_label=SCORES.get(stage, "score"), y_label="records", log=True,
        )
        for (source, stage), h in score_histograms(manifest).items()
    ]  # fmt: skip
    if plots:
        yield Group("Scores of the filters", plots)


def _lengths(manifest: Manifest, config: RunConfig, folder: Path, key: str) -> list[Plot | Table]:
    sampled = {source.name: _sampled_lengths(source, folder) for source in manifest.sources}
    plots = [
        histogram(
            About(
                f"{key}-lengths-{name}", f"{name}: tokens per text",
                f"Share of the texts of {name} by their tokens.",
            ),
            edges,
            {text: 100 * np.histogram(v, edges)[0] / len(v) for text, v in lengths.items()},
            x_label="tokens", y_label="% of the texts", side_by_side=True,
        )
        for name, lengths in sampled.items()
        if lengths
        for edges in [_edges(max(int(v.max()) for v in lengths.values()))]
    ]  # fmt: skip
    rows = []
    for source in manifest.sources:
        stats = {"query": source.query_tokens, "positive": source.positive_tokens,
                 "negative": source.negative_tokens}  # fmt: skip
        rows += [
            [f"{source.name} · {text}", f"{s.mean:.1f}", str(s.p50), str(s.p90), str(s.p99)]
            for text, s in stats.items()
            if s is not None
        ]
    header = ["text", "mean", "median", "90%", "99%"]
    return [*plots, Table("Tokens per text", header, rows), _padding(sampled, config)]


def _edges(most: int) -> np.ndarray:
    """Of at most 30 bins of whole tokens, the last of which holds `most`."""
    return np.arange(0, most + 1 + (width := -(-(most + 1) // 30)), width)


def _sampled_lengths(source: SourceSummary, folder: Path) -> dict[str, np.ndarray]:
    """Tokens of the texts of some records; empty where the shards are not at hand."""
    here = [place for place in places(folder, source) if isinstance(place, Path)]
    if not source.records or not all(path.is_file() for path in here):
        return {}
    shards = open_source(folder, source)
    size = min(_RUN_RECORDS, -(-len(shards) // _RUNS))
    firsts = np.unique(np.linspace(0, len(shards) - size, _RUNS).astype(int)).tolist()
    runs = [shards.read_run(first, first + size).lengths_NS for first in firsts]
    lengths_NS = np.concatenate(runs)
    texts = {"query": lengths_NS[:, 0], "positive": lengths_NS[:, 1]}
    negatives = lengths_NS[:, 2:].ravel()
    return texts | ({"negative": negatives[negatives > 0]} if negatives.any() else {})


def _padding(sampled: dict[str, dict[str, np.ndarray]], config: RunConfig) -> Table:
    """What padding would be without packing."""
    feed, rows = config.feed, []
    for name, lengths in sampled.items():
        limits = {text: feed.query_tokens if text == "query" else feed.positive_tokens
                  for text in lengths}  # fmt: skip
        cut = {text: np.minimum(v, limits[text]) for text, v in lengths.items()}
        real = sum(int(v.sum()) for v in cut.values())
        to_limit = sum(len(v) * limits[text] for text, v in cut.items())
        to_longest = sum(_padded_to_longest(v, feed.global_batch_size) for v in cut.values())
        rows.append([name, *[_percent(all_ - real, all_) for all_ in (to_limit, to_longest)]])
    header = ["source", "padded to the limit", "padded to the batch's longest"]
    return Table("Padding that packing spares (what is left is under Speed)", header, rows)


def _padded_to_longest(lengths_N: np.ndarray, batch: int) -> int:
    """Positions of batches of these texts in their order, each as long as its longest."""
    starts = np.arange(0, len(lengths_N), batch)
    sizes = np.diff([*starts, len(lengths_N)])
    return int((np.maximum.reduceat(lengths_N, starts) * sizes).sum())


def _dropped(manifest: Manifest, folder: Path) -> Iterator[Group]:
    """Examples, of the reasons that took most."""
    if not has_ledger(folder):
        return
    counts = ledger_counts(folder)
    parts = []
    for source in manifest.sources:
        mine = [(reason, n) for (name, reason), n in counts.items() if name == source.name]
        for reason, count in mine[:REASONS_SHOWN]:
            rows = ledger_samples(
                folder, source=source.name, reason=reason, most=SAMPLES_PER_REASON
            )
            samples = [
                Sample(
                    f"{Path(row.file).name}, row {row.row}",
                    row.detail + ("" if row.score is None else f" (score {row.score:.3f})"),
                    [(n, t) for n in ("query", "positive", "negative") if (t := getattr(row, n))],
                )
                for row in rows
            ]
            title = f"{source.name}: {_words(reason)} ({count:,})"
            parts.append(Samples(title, samples))
    if parts:
        yield Group("Examples of what was dropped", parts)
