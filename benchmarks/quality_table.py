"""The table of `quality.py`: both sides over the seeds."""

import statistics
from typing import Any

SIDES = ("ours", "sentence-transformers")
NDCG, STS = "ndcg@10", "spearman"
_ROWS = {
    NDCG: ("held-out nDCG@10", 100, 1),
    STS: ("STS Spearman", 100, 1),
    "loss": ("last 10 losses", 1, 3),
    "process_s": ("process, s", 1, 1),
    "whole_s": ("whole time, s", 1, 1),
    "cpu_s": ("CPU time, s", 1, 1),
    "step_s": ("a step, s", 1, 3),
    "others": ("cores others used", 1, 2),
}
"""Measure → its name, what it is multiplied with, and digits."""


def summary(by_seed: dict[str, dict[str, Any]]) -> str:
    """Means and ranges, and whether ours is as good in half the time.

    Args:
      by_seed: seed → what `quality.py` measured with it.
    """
    seeds = list(by_seed.values())
    ours, theirs = ({m: [s[side][m] for s in seeds] for m in seeds[0][side]} for side in SIDES)
    theirs["whole_s"] = theirs["process_s"]
    ours["whole_s"] = [s["prepare_s"] + s[SIDES[0]]["process_s"] for s in seeds]
    lines = [f"{f'{len(seeds)} seeds':18}{SIDES[0]:>24}{SIDES[1]:>24}{'ratio':>8}"]
    for measure, (name, scale, digits) in _ROWS.items():
        if measure not in ours:
            lines.append(f"{name:18} not measured: give --sts a file of the STS Benchmark")
            continue
        cells = [_cell([scale * v for v in side[measure]], digits) for side in (ours, theirs)]
        ratio = statistics.mean(ours[measure]) / statistics.mean(theirs[measure])
        shown = "" if measure == "others" else f"{ratio:8.2f}"
        lines.append(f"{name:18}{cells[0]:>24}{cells[1]:>24}{shown}")
    untrained = 100 * statistics.mean(s["untrained"][NDCG] for s in seeds)
    first, every = (max(s["losses_apart"][k] for s in seeds) for k in ("first", "all"))
    least = statistics.mean(theirs[NDCG]) - (max(theirs[NDCG]) - min(theirs[NDCG]))
    share = statistics.mean(ours["whole_s"]) / statistics.mean(theirs["whole_s"])
    return "\n".join(
        [
            *lines,
            f"nDCG@10 before training: {untrained:.1f}",
            f"losses differ by at most {first:.1e} in the first step, {every:.1e} in all",
            f"nDCG@10 at least {100 * least:.1f}, theirs less its spread over the seeds: "
            f"{_answer(statistics.mean(ours[NDCG]) >= least)}",
            f"at most half the whole time, preparation of the pairs included: "
            f"{_answer(share <= 0.5)}",
        ]
    )


def _cell(values: list[float], digits: int) -> str:
    mean, least, most = (f"{f(values):.{digits}f}" for f in (statistics.mean, min, max))
    return f"{mean} ({least} to {most})"


def _answer(is_so: bool) -> str:
    return "yes" if is_so else "NO"
