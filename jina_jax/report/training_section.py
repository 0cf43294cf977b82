"""Curves of a run: what it learned, from which sources, how fast and in how much memory."""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from jina_jax.report.facts import RunFacts
from jina_jax.report.parts import About, Group, Line, Plot, Section, Table, bars, curves, stacked


class Curve(NamedTuple):
    """Which metrics are drawn together."""

    name: str
    title: str
    lines: Mapping[str, str]
    """Name in the legend → metric."""
    unit: str = ""
    log: bool = False
    from_zero: bool = False
    scale: float = 1.0


LEARNING = (
    Curve("loss", "Loss", {"total": "loss", "query → positive": "query_loss",
                           "positive → query": "positive_loss", "margin": "margin_loss",
                           "distillation": "distill_loss"}, "nats"),
    Curve("accuracy", "In-batch accuracy", {"accuracy": "accuracy"}, "% of the queries",
          from_zero=True, scale=100),
    Curve("cosines", "Mean cosines", {"own positive": "positive_cosine",
                                      "others' positives": "in_batch_cosine",
                                      "hard negative": "negative_cosine"}, "cosine"),
    Curve("learning-rate", "Learning rate", {"learning rate": "learning_rate"}, from_zero=True),
    Curve("gradient-norm", "Gradient norm, before clipping", {"norm": "gradient_norm"}, log=True),
    Curve("temperature", "Temperature", {"temperature": "temperature"}),
    Curve("masked", "Known matches left out of the negatives", {"share": "masked_share"},
          "% of the keys", scale=100),
)  # fmt: skip
SPEED = (
    Curve("pairs", "Records a second", {"records": "pairs_per_s"}, "records/s", from_zero=True),
    Curve("tokens", "Tokens a second, padding left out", {"tokens": "real_tokens_per_s"},
          "tokens/s", from_zero=True),
    Curve("step-time", "Time of a step", {"step": "step_time_s", "wait for data": "data_wait_s"},
          "s", from_zero=True),
    Curve("padding", "Padding in packed rows", {"padding": "padding_share"}, "% of the positions",
          from_zero=True, scale=100),
    Curve("flops", "Floating-point operations a second and device",
          {"computed": "tflops_per_s_per_device", "of texts": "text_tflops_per_s_per_device"},
          "TFLOP/s", from_zero=True),
    Curve("mfu", "Model FLOPs utilisation", {"computed": "mfu", "of texts": "text_mfu"},
          "% of the peak", from_zero=True, scale=100),
    Curve("memory", "Peak memory", {"host": "host_peak_gib", "fullest device": "device_peak_gib"},
          "GiB", from_zero=True),
)  # fmt: skip
OF_SOURCES = (
    Curve("source-loss", "Loss of each source", {"": "loss"}, "nats"),
    Curve("source-accuracy", "Accuracy of each source", {"": "accuracy"}, "% of the queries",
          from_zero=True, scale=100),
    Curve("source-positive", "Cosine of own positives, by source", {"": "positive_cosine"},
          "cosine"),
)  # fmt: skip
_NO_PEAK = "The peak of these devices is not known, so that there is no utilisation (MFU) to tell."


def training_section(run: RunFacts, key: str, title: str) -> Section | None:
    """The chapter of a run's training; None before its first logged step."""
    if not run.metrics:
        return None
    last = run.metrics[-1]
    groups = [
        Group("Learning", list(_plots(run.metrics, LEARNING, key))),
        Group("Sources", [*_mixture(run, key), *_of_sources(run.metrics, key)]),
        Group(
            "Speed and memory",
            [*_plots(run.metrics, SPEED, key), *_goodput(last, key)],
            "" if "mfu" in last else _NO_PEAK,
        ),
        *_alarms(run.metrics),
    ]
    text = (
        f"{last['step']:,} of {run.config.train.num_steps:,} steps with "
        f"{run.config.feed.global_batch_size:,} records a batch; figures of every "
        f"{run.config.train.log_every_steps} steps."
    )
    if run.config.train.ema_decay:
        text += (
            f" The model is the average of the parameters at decay {run.config.train.ema_decay:g}."
        )
    return Section(key, title, text, groups)


def line(metrics: Sequence[Mapping[str, Any]], name: str, scale: float = 1.0) -> Line:
    """Steps and values of a metric, where it was written and is a number."""
    written = [m for m in metrics if m.get(name) is not None and math.isfinite(m[name])]
    return [(m["step"], scale * m[name]) for m in written]


def _plots(
    metrics: Sequence[Mapping[str, Any]], wanted: Sequence[Curve], key: str
) -> Iterator[Plot]:
    for curve in wanted:
        lines = {n: line(metrics, metric, curve.scale) for n, metric in curve.lines.items()}
        yield from draw_curve(curve, lines, key)


def draw_curve(curve: Curve, lines: Mapping[str, Line], key: str, says: str = "") -> Iterator[Plot]:
    """A plot of the lines that have points; none where no line has.

    Args:
      curve: title and axes.
      lines: by their names in the legend.
      key: beginning of the plot's name.
      says: what the plot shows, after its title; empty for the ends of each line.
    """
    if drawn := {name: points for name, points in lines.items() if points}:
        ends = ", ".join(f"{n} {p[0][1]:.4g} to {p[-1][1]:.4g}" for n, p in drawn.items())
        says = says or f"first to last: {ends}"
        yield curves(
            About(f"{key}-{curve.name}", curve.title, f"{curve.title}, {says}."), drawn,
            y_label=curve.unit, log=curve.log, from_zero=curve.from_zero,
        )  # fmt: skip


def _sources(last: Mapping[str, Any]) -> list[str]:
    return [name.split("/")[1] for name in last if name.endswith("/asked_share")]


def _mixture(run: RunFacts, key: str) -> Iterator[Plot | Table]:
    last = run.metrics[-1]
    names = _sources(last)
    metrics = ("share", "asked_share", "batches", "records", "epochs")
    by_source = {n: {m: last[f"source/{n}/{m}"] for m in metrics} for n in names}
    yield bars(
        About(
            f"{key}-mixture", "Share of the batches, asked and drawn",
            "For each source, the share of batches that the weights ask for and the share drawn.",
        ),
        {
            name: {"asked": 100 * values["asked_share"], "drawn": 100 * values["share"]}
            for name, values in by_source.items()
        },
        x_label="% of the batches",
    )  # fmt: skip
    rows = [
        [n, f"{v['batches']:,}", f"{v['records']:,}", f"{v['epochs']:.2f}",
         f"{100 * v['asked_share']:.2f}%", f"{100 * v['share']:.2f}%"]
        for n, v in by_source.items()
    ]  # fmt: skip
    yield Table(
        "What was drawn", ["source", "batches", "records", "epochs", "asked", "drawn"], rows
    )


def _of_sources(metrics: Sequence[Mapping[str, Any]], key: str) -> Iterator[Plot]:
    names = _sources(metrics[-1])
    for curve in OF_SOURCES:
        metric = curve.lines[""]
        lines = {n: line(metrics, f"source/{n}/{metric}", curve.scale) for n in names}
        yield from draw_curve(curve, lines, key)


def _goodput(last: Mapping[str, Any], key: str) -> Iterator[Plot]:
    seconds = {
        name.removeprefix("goodput/").removesuffix("_s").replace("_", " "): round(value)
        for name, value in last.items()
        if name.startswith("goodput/") and name.endswith("_s")
    }
    if any(seconds.values()):
        about = About(
            f"{key}-goodput", "Where the time went",
            "Seconds of the run, all its resumptions together, by what they were spent on.",
        )  # fmt: skip
        yield stacked(about, {"all starts": seconds}, x_label="seconds")


def _alarms(metrics: Sequence[Mapping[str, Any]]) -> Iterator[Group]:
    rows = [[f"{m['step']:,}", alarm["message"]] for m in metrics for alarm in m.get("alarm", ())]
    if rows:
        yield Group(
            "Alarms", [Table("Alarms raised and cleared", ["step", "what"], rows, words=True)]
        )
