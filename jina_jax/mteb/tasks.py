"""The tasks of a suite: mteb's own, from the hub or a local mirror, and sets of one's own."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import mteb
import xxhash
from datasets import Dataset
from mteb import TaskMetadata
from mteb.abstasks.abstask import AbsTask
from mteb.abstasks.retrieval import AbsTaskRetrieval
from mteb.abstasks.sts import AbsTaskSTS

from jina_jax.config import NegationSet, RerankingSet, RetrievalSet, StsSet, Suite, SuiteTask
from jina_jax.config.evaluate import OwnSet, set_problems
from jina_jax.errors import UserError
from jina_jax.evaluate.negation import NegationTask, negation_scores, read_negation
from jina_jax.evaluate.reranking import RerankingTask, read_reranking
from jina_jax.evaluate.retrieval import RetrievalTask
from jina_jax.evaluate.retrieval_set import read_retrieval, retrieval_files
from jina_jax.evaluate.sts import StsTask, read_sts
from jina_jax.sources.rows import evaluation_files
from jina_jax.system.files import file_state, is_url
from jina_jax.system.hashing import file_xxh3


def _sts(task: StsTask, split: str) -> dict[str, Any]:
    """Pairs with scores; mteb correlates them with the cosines."""
    columns = {"sentence1": task.left, "sentence2": task.right, "score": task.score}
    least, most = min(task.score), max(task.score)
    return {"dataset": _columns(columns, split), "min_score": least, "max_score": most}


def _retrieval(task: RetrievalTask, split: str) -> dict[str, Any]:
    """Queries, a corpus to search and judgements."""
    corpus = dict(zip(task.corpus.ids, task.corpus.texts(), strict=True))
    return _search(task.queries, corpus, task.relevant, None, split)


def _reranking(task: RerankingTask, split: str) -> dict[str, Any]:
    """Queries with passages of their own; from version 2 on mteb has them as retrieval too."""
    # Of equal scores the later name comes first: an irrelevant one, as in our own measure.
    passages = {
        f"q{number}": {f"q{number}-a{i}": text for i, text in enumerate(one.positives)}
        | {f"q{number}-b{i}": text for i, text in enumerate(one.negatives)}
        for number, one in enumerate(task.queries)
    }
    relevant = {
        query: {name: int(name.startswith(f"{query}-a")) for name in of}
        for query, of in passages.items()
    }
    queries = dict(zip(passages, (one.query for one in task.queries), strict=True))
    corpus = {name: text for of in passages.values() for name, text in of.items()}
    ranked = {query: list(of) for query, of in passages.items()}
    return _search(queries, corpus, relevant, ranked, split)


def _negation(task: NegationTask, split: str) -> dict[str, Any]:
    """Triplets, of which `negation_scores` are taken."""
    return {"dataset": _columns(dict(zip(_TRIPLET, task[1:], strict=True)), split)}


def _columns(columns: dict[str, Any], split: str) -> dict[str, Dataset]:
    return {split: Dataset.from_dict(columns)}


def _search(
    queries: dict[str, str], corpus: dict[str, str], relevant: dict[str, dict[str, int]],
    ranked: dict[str, list[str]] | None, split: str,
) -> dict[str, Any]:  # fmt: skip
    texts = {
        part: Dataset.from_dict({"id": list(of), "text": list(of.values())})
        for part, of in (("corpus", corpus), ("queries", queries))
    }
    of_split = {**texts, "relevant_docs": relevant, "top_ranked": ranked}
    return {"dataset": {"default": {split: of_split}}}


class _OwnNegation(AbsTask):
    """mteb has no class for triplets."""

    def _evaluate_subset(
        self, model: Any, data_split: Dataset, *, encode_kwargs: Any, hf_split: str,
        hf_subset: str, **_: Any,
    ) -> dict[str, float]:  # fmt: skip
        vectors = (
            model.encode(
                [{"text": list(data_split[name])}], task_metadata=self.metadata,
                hf_split=hf_split, hf_subset=hf_subset, **encode_kwargs,
            )
            for name in _TRIPLET
        )  # fmt: skip
        return negation_scores(*vectors)

    def _calculate_descriptive_statistics_from_split(self, split: str, **_: Any) -> Any:
        triplets = self.dataset["test"]
        texts = [text for name in triplets.column_names for text in triplets[name]]
        return {"num_samples": len(triplets), "number_of_characters": sum(map(len, texts))}


_TRIPLET = ("anchor", "entailment", "negative")
_KINDS: dict[type, tuple[type[AbsTask], Callable[[Any], Any], Any, str, str]] = {
    StsSet: (AbsTaskSTS, read_sts, _sts, "STS", "cosine_spearman"),
    RetrievalSet: (AbsTaskRetrieval, read_retrieval, _retrieval, "Retrieval", "ndcg_at_10"),
    RerankingSet: (AbsTaskRetrieval, read_reranking, _reranking, "Reranking", "map_at_10"),
    # The nearest of the kinds that mteb knows.
    NegationSet: (
        _OwnNegation, read_negation, _negation, "PairClassification", "hard_negation",
    ),
}  # fmt: skip
"""A set → its task, its reader, what mteb's `load_data` would set, mteb's name of its kind, and
what is taken as its score."""


def own_task(config: OwnSet) -> AbsTask:
    """Makes a task of a set. Its data are read and checked here, before any work.

    The revision of its data is a hash of what the set says and of its files.

    Raises: UserError as the readers of the sets do.
    """
    task_class, read, loaded, kind, measure = _KINDS[type(config)]
    task, split = read(config), config.split if isinstance(config, RetrievalSet) else "test"
    paths = list(_paths(config))
    metadata = TaskMetadata(
        name=config.name,
        description=f"Own evaluation set {config.name}",
        type=kind,
        category="t2t",
        eval_splits=[split],
        eval_langs=["und-Latn"],
        main_score=measure,
        dataset={"path": paths[0], "revision": _revision(config, paths)},
    )

    def load_data(self: Any, num_proc: int | None = None, **_: Any) -> None:
        vars(self).update(loaded(task, split), data_loaded=True)

    # mteb has the metadata on the class, and takes those of an instance off after it ran.
    members = {"metadata": metadata, "load_data": load_data}
    made: AbsTask = type(config.name, (task_class,), members)()
    return made


def _paths(config: OwnSet) -> Iterator[str]:
    parts = retrieval_files(config) if isinstance(config, RetrievalSet) else (config,)
    for part in parts:
        yield from evaluation_files(part)


def _revision(config: OwnSet, paths: list[str]) -> str:
    states = [str(file_state(path)) if is_url(path) else file_xxh3(path) for path in paths]
    return xxhash.xxh3_128_hexdigest(json.dumps([repr(config), states]).encode())


def suite_tasks(suite: Suite, mirror: Path | None) -> dict[str, list[Any]]:
    """Makes mteb's tasks of a suite, by group.

    Args:
      suite: names of the tasks, and sets of one's own.
      mirror: folder that holds data sets as OWNER/NAME, as `hf download` writes them; None reads
        them from the hub.
    Raises: UserError naming every task that mteb doesn't know, every folder that is missing, and
      what is wrong with a set of one's own.
    """
    _check_names(suite)
    groups = {
        group: [_task(one) if isinstance(one, SuiteTask) else own_task(one) for one in chosen]
        for group, chosen in suite.groups.items()
    }
    if mirror is not None:
        own = {o.name for of in suite.groups.values() for o in of if not isinstance(o, SuiteTask)}
        tasks = [task for of in groups.values() for task in of if task.metadata.name not in own]
        _read_from(mirror, [leaf for task in tasks for leaf in _leaves(task)])
    return groups


def _check_names(suite: Suite) -> None:
    """Results lie in files by the names of the tasks, so that no two may have the same."""
    chosen = [one for tasks in suite.groups.values() for one in tasks]
    unknown = [t.name for t in chosen if isinstance(t, SuiteTask) and not _is_known(t.name)]
    if unknown:
        raise UserError(f"suite {suite.name}: mteb {mteb.__version__} has no {', '.join(unknown)}")
    names = [one.name for one in chosen]
    for one in chosen:
        which = f"suite {suite.name}: {one.name!r}"
        if names.count(one.name) > 1:
            raise UserError(f"{which} is the name of several tasks: names must differ")
        if isinstance(one, SuiteTask):
            continue
        if _is_known(one.name):
            raise UserError(f"{which} is the name of a task of mteb; choose another for the set")
        for problem in set_problems(one):
            raise UserError(f"{which}{problem}")


def _is_known(name: str) -> bool:
    try:
        mteb.get_task(name)
    except KeyError:
        return False
    return True


def _task(chosen: SuiteTask) -> Any:
    return mteb.get_task(
        chosen.name, hf_subsets=chosen.subsets or None, eval_splits=chosen.splits or None
    )


def _leaves(task: Any) -> Iterator[Any]:
    """A task, or those that it puts together."""
    parts = getattr(task, "tasks", None)
    for part in parts or ():
        yield from _leaves(part)
    if not parts:
        yield task


def _read_from(mirror: Path, tasks: list[Any]) -> None:
    """Points every task at its folder of the mirror."""
    folders = {
        task.metadata.dataset["path"]: mirror / task.metadata.dataset["path"] for task in tasks
    }
    missing = sorted(name for name, folder in folders.items() if not folder.is_dir())
    if missing:
        lines = [
            f"hf download --repo-type dataset {name} --local-dir {mirror / name}"
            for name in missing
        ]
        raise UserError(
            f"the mirror {mirror} lacks {len(missing)} of {len(folders)} data sets; fetch them "
            f"where there is a network:\n  " + "\n  ".join(lines)
        )
    for task in tasks:
        dataset = task.metadata.dataset
        # Of this task alone: mteb's metadata belong to the class.
        task.metadata = task.metadata.model_copy(
            update={"dataset": dataset | {"path": str(folders[dataset["path"]].absolute())}}
        )
