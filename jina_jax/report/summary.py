"""The figures that a page begins with."""

from collections.abc import Iterator, Sequence

from jina_jax.report.evaluation_section import KINDS, measure_words
from jina_jax.report.facts import RunFacts
from jina_jax.report.parts import Group, Tile

_HEADLINES = {
    "retrieval": "ndcg@10",
    "sts": "spearman",
    "reranking": "map@10",
    "negation": "hard_negation",
}
"""Kind of results → the measure that stands for it."""


def summary(runs: Sequence[RunFacts]) -> list[Group]:
    """The figures of each run, under its name."""
    return [Group(run.name, list(_of_run(run))) for run in runs]


def _of_run(run: RunFacts) -> Iterator[Tile]:
    if run.manifest is not None:
        read = sum(source.read for source in run.manifest.sources)
        yield Tile(
            "records trained on", f"{run.manifest.train_records:,}",
            f"of {read:,} read from {len(run.manifest.sources)} source"
            f"{'s' if len(run.manifest.sources) > 1 else ''}",
        )  # fmt: skip
    if run.metrics:
        last = run.metrics[-1]
        yield Tile(
            "steps", f"{last['step']:,}",
            f"of {run.config.train.num_steps:,}, {run.config.feed.global_batch_size:,} each",
        )  # fmt: skip
        yield Tile(
            "loss at the end", f"{last['loss']:.3f}", f"{run.metrics[0]['loss']:.3f} at first"
        )
    for kind in KINDS:
        yield from _headline(run, kind)


def _headline(run: RunFacts, kind: str) -> Iterator[Tile]:
    results, measure = run.results.get(kind, {}), _HEADLINES[kind]
    of = results.get("average") or next(iter(results.values()), {})
    if measure not in of.get("trained", {}):
        return
    before = of.get("untrained", {}).get(measure)
    note = "" if before is None else f"{100 * before:.1f} before training"
    yield Tile(
        f"{measure_words(measure)}, {KINDS[kind].lower()}", f"{100 * of['trained'][measure]:.1f}%",
        note,
    )  # fmt: skip
