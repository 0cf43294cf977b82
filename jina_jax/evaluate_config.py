"""What `evaluate` measures besides the held-out records; part of `RunConfig`."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal


def _changeable(default: Any) -> Any:
    return field(default=default, metadata={"changeable": True})


@dataclass(frozen=True)
class StsSet:
    """Pairs of texts with a score of how similar they are (semantic textual similarity)."""

    name: str
    """The task, as the results name it."""
    paths: tuple[str, ...]
    """Files or globs."""
    kind: Literal["jsonl", "parquet", "csv", "tsv", "text"] = "jsonl"
    """File format; `text` is lines whose cells are parted by tabs, without header or quotes."""
    fields: tuple[str, str, str] = ("sentence1", "sentence2", "score")
    """Fields or columns of the two texts and of the score, a number of any scale; for `text` their
    numbers from 1 (of the STS Benchmark's files 6, 7 and 5)."""


@dataclass(frozen=True)
class RerankingSet:
    """Queries, each with relevant and other passages."""

    name: str
    """The task, as the results name it."""
    paths: tuple[str, ...]
    """Files or globs."""
    kind: Literal["jsonl", "parquet"] = "jsonl"
    """File format."""
    fields: tuple[str, str, str] = ("query", "positive", "negative")
    """Fields or columns of the query, the relevant passages and the others: a list of texts or one
    text."""


@dataclass(frozen=True)
class EvaluateConfig:
    """Retrieval on the held-out split, and sets of scored pairs and of passages to rerank."""

    top_k: int = _changeable(10)
    """Cut-off of nDCG@k, recall@k and MAP@k."""
    batch_rows: int = _changeable(32)
    """Packed rows encoded at once."""
    sts: tuple[StsSet, ...] = _changeable(())
    """Sets whose scores are correlated with the cosines."""
    reranking: tuple[RerankingSet, ...] = _changeable(())
    """Sets whose passages are ranked by cosine with their query."""
    every_steps: int = _changeable(0)
    """Evaluate during training whenever this many steps are done, and at the end; 0 never does.
    Figures go to evaluations.jsonl in the run folder and to TensorBoard."""
    keep_best: str = _changeable("")
    """KIND/TASK/MEASURE, such as retrieval/average/ndcg@10, of which the checkpoint with the
    highest value is kept in best/, where everything that uses the run then takes its parameters
    from; empty takes the newest."""


def evaluate_problems(evaluate: EvaluateConfig) -> Iterator[str]:
    """What is wrong with the values, one sentence each."""
    for name in ("top_k", "batch_rows"):
        if getattr(evaluate, name) < 1:
            yield f"evaluate.{name}={getattr(evaluate, name)} must be above 0"
    if evaluate.every_steps < 0:
        yield f"evaluate.every_steps={evaluate.every_steps} must not be negative"
    if evaluate.keep_best and not evaluate.every_steps:
        yield (
            f"evaluate.keep_best={evaluate.keep_best} chooses among evaluations during training, "
            f"and there are none: set evaluate.every_steps"
        )
    if evaluate.keep_best and evaluate.keep_best.count("/") != 2:
        yield (
            f"evaluate.keep_best={evaluate.keep_best} is no KIND/TASK/MEASURE, such as "
            f"retrieval/average/ndcg@10"
        )
    kinds: dict[str, Sequence[StsSet | RerankingSet]] = {
        "sts": evaluate.sts,
        "reranking": evaluate.reranking,
    }
    for kind, sets in kinds.items():
        names = [s.name for s in sets]
        for name in sorted({n for n in names if names.count(n) > 1}):
            yield f"two sets of evaluate.{kind} are named {name!r}: names must differ"
        for number, one in enumerate(sets):
            which = f"evaluate.{kind}.{number} ({one.name})"
            if one.name == "average":
                yield f"{which}: the mean of the sets has that name; choose another"
            if not one.paths:
                yield f"{which} has no paths"
            if one.kind == "text" and not all(f.isdecimal() and int(f) > 0 for f in one.fields):
                yield (
                    f"{which}: fields of kind `text` are column numbers from 1, got "
                    f"{', '.join(one.fields)}"
                )
