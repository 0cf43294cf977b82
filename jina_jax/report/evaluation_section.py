"""What was measured: retrieval, similarity, reranking, negation; during training and after it."""

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from jina_jax.ablate.report import AblationReport, ablation_tables, mean_and_spread
from jina_jax.evaluate.results import Results
from jina_jax.mteb.published import Comparison
from jina_jax.report.facts import RunFacts
from jina_jax.report.parts import About, Group, Line, Plot, Section, Table, Tile, bars, curves


class Kind(NamedTuple):
    """How a kind of results is shown."""

    heading: str
    headline: str
    """The measure that stands for it."""
    text: str = ""


KINDS = {
    "retrieval": Kind("Retrieval of held-out pairs", "ndcg@10"),
    "sts": Kind("Semantic textual similarity", "spearman"),
    "reranking": Kind("Reranking", "map@10"),
    "negation": Kind(
        "Negation", "hard_negation",
        "Easy negation: the share of triplets whose query is nearer to its entailment than to its "
        "negation. Hard negation: the share whose entailment is nearer to the query than to the "
        "negation.",
    ),
}  # fmt: skip
SYSTEMS = {"untrained": "before", "trained": "after", "bm25": "BM25"}


def evaluation_section(run: RunFacts, key: str, title: str) -> Section | None:
    """The chapter of what was measured; None where nothing was."""
    groups = []
    for kind, about in KINDS.items():
        parts = [
            *_after(run.results.get(kind, {}), f"{key}-{kind}"),
            *_during(run.evaluations, kind, f"{key}-{kind}"),
        ]
        if parts:
            groups.append(Group(about.heading, parts, about.text))
    if run.published is not None:
        groups.append(_beside_published(run.published, run.name, key))
    if not groups:
        return None
    text = "Before is the model that this training started from, after the one it ended with."
    return Section(key, title, text, groups)


def _after(results: Results, key: str) -> Iterator[Plot | Table]:
    if not results:
        return
    tasks = [t for t in results if t != "average"]
    shown = tasks if len(tasks) == 1 else [*tasks, "average"]
    measures = list(next(iter(results[shown[0]].values())))
    for measure in measures:
        by_task = {
            task: {
                SYSTEMS.get(system, system): 100 * values[measure]
                for system, values in results[task].items()
                if measure in values
            }
            for task in shown
        }
        about = about_measure(key, measure, "of each task, before and after training.")
        yield bars(about, by_task, x_label="%")


def _during(evaluations: Sequence[Mapping[str, float]], kind: str, key: str) -> Iterator[Plot]:
    """A plot a measure; where there are several tasks, their average is a line too."""
    by_measure: dict[str, dict[str, Line]] = {}
    names = list(dict.fromkeys(n for e in evaluations for n in e if n.startswith(f"{kind}/")))
    tasks = {name.split("/")[1] for name in names} - {"average"}
    for name in names:
        _, task, measure = name.split("/")
        if task == "average" and len(tasks) == 1:
            continue
        points = [(e["step"], 100 * e[name]) for e in evaluations if name in e]
        by_measure.setdefault(measure, {})[task] = points
    for measure, lines in by_measure.items():
        of = "of each task at the steps that were evaluated."
        about = about_measure(f"{key}-during", measure, of)
        about = about._replace(title=f"{about.title} during training")
        yield curves(about, lines, y_label="%")


def _beside_published(comparison: Comparison, name: str, key: str) -> Group:
    """Averages as bars, all tasks as a table."""
    models = list(dict.fromkeys(model for row in comparison.rows for model in row.published))
    # A model without some of the tasks has another mean of ours beside it: then each has its own.
    values: dict[str, dict[str, float | None]] = {}
    for mean in comparison.means:
        values.setdefault(f"{mean.group} ({mean.tasks})", {}).setdefault(name, mean.ours)
        values[f"{mean.group} ({mean.tasks})"][mean.model] = mean.published
    parts: list[Plot | Table] = []
    if values:
        about = About(
            f"{key}-published", "Averages beside published ones",
            "Mean score of each group of tasks (their number), ours and published models'.",
        )  # fmt: skip
        parts.append(bars(about, values, x_label="mean score"))
    rows = [
        [f"{row.group} · {row.task} · {row.measure}", f"{row.ours:.2f}",
         *[f"{row.published[m]:.2f}" if m in row.published else "" for m in models]]
        for row in comparison.rows
    ]  # fmt: skip
    parts.append(Table("Task by task", ["task", name, *models], rows))
    sources = dict.fromkeys(row.source for row in comparison.rows if row.source)
    text = " ".join([f"Published: {'; '.join(sources)}."] * bool(sources) + comparison.notes)
    return Group("MTEB", parts, text)


def measure_words(measure: str) -> str:
    """A measure as it is written: `nDCG@10`, `Hard negation`."""
    words = measure.replace("_", " ")
    for name, written in (("ndcg@", "nDCG@"), ("map@", "MAP@"), ("mrr@", "MRR@")):
        words = words.replace(name, written)
    return words if words[1].isupper() else words[0].upper() + words[1:]


def about_measure(key: str, measure: str, of: str, before: str = "") -> About:
    """What a plot of a measure is of.

    Args:
      key: begins the names of its files.
      measure: as the results name it.
      of: says of what, after the measure.
      before: begins the title.
    """
    title = before + measure_words(measure)
    name = measure.replace("@", "-at-").replace("_", "-")
    return About(f"{key}-{name}", title, f"{title} {of}")


def ablation_section(report: AblationReport, key: str) -> Section:
    """The chapter of an ablation."""
    parts: list[Plot | Table] = []
    for measure in report.arms[0].measures:
        by_arm = {arm.name: mean_and_spread(arm.measures[measure]) for arm in report.arms}
        spreads = {arm: {"mean": 100 * spread} for arm, (_, spread) in by_arm.items()}
        parts.append(
            bars(
                about_measure(key, measure, "of each arm: mean and deviation of the seeds."),
                {arm: {"mean": 100 * mean} for arm, (mean, _) in by_arm.items()}, x_label="%",
                digits=2, spreads=spreads if len(report.seeds) > 1 else None,
            )
        )  # fmt: skip
    for header, rows in ablation_tables(report):
        caption, *columns = header
        parts.append(Table(caption, ["arm", *columns], rows))
    seeds = "one seed" if len(report.seeds) == 1 else f"{len(report.seeds)} seeds"
    text = f"The same run with a few fields changed in each arm, {seeds}; all measured alike."
    return Section(key, f"Ablation: {report.name}", text, [Group("Arms", parts)])


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
    for kind, about in KINDS.items():
        results, measure = run.results.get(kind, {}), about.headline
        of = results.get("average") or next(iter(results.values()), {})
        if measure in of.get("trained", {}):
            before = of.get("untrained", {}).get(measure)
            yield Tile(
                f"{measure_words(measure)}, {about.heading.lower()}",
                f"{100 * of['trained'][measure]:.1f}%",
                "" if before is None else f"{100 * before:.1f} before training",
            )
