"""Retrieval sets of one's own: a folder in the layout of BEIR, or files with named fields."""

from collections.abc import Iterator
from typing import NamedTuple

from jina_jax.config import RetrievalSet
from jina_jax.errors import UserError
from jina_jax.evaluate.retrieval import Corpus, RetrievalTask
from jina_jax.sources.rows import Row, evaluation_rows
from jina_jax.system.files import find_files
from jina_jax.system.progress import say

_ENDINGS = (".jsonl", ".jsonl.gz", ".jsonl.zst")


class PartFiles(NamedTuple):
    """Of one of the three parts of a set."""

    name: str
    paths: tuple[str, ...]
    kind: str


def read_retrieval(config: RetrievalSet) -> RetrievalTask:
    """Reads queries and judgements of a set, and checks its passages.

    The passages' ids are held, their texts are not: they are read again whenever they are asked
    for. Queries without a judgement are left out, and their number is said.

    Raises: UserError naming the file and row that cannot be read, has no text or an id that came
      before, or judges a query or passage that is not there; and when nothing is judged.
    """
    corpus_files, query_files, qrels_files = retrieval_files(config)
    queries = dict(_with_ids(query_files, config.query_fields[0], config.query_fields[1], ""))
    id_field, title, text = config.corpus_fields
    ids = [name for name, _ in _with_ids(corpus_files, id_field, text, title)]
    relevant = _judgements(config, qrels_files, queries, frozenset(ids))
    if left_out := len(queries) - len(relevant):
        say(f"{config.name}: {left_out:,} of {len(queries):,} queries are not judged and left out")

    def texts() -> Iterator[str]:
        rows = evaluation_rows(corpus_files)
        return (_text(row, text, title) for row in rows)

    kept = {name: query for name, query in queries.items() if name in relevant}
    return RetrievalTask(config.name, kept, Corpus(ids, texts), relevant)


def retrieval_files(config: RetrievalSet) -> tuple[PartFiles, PartFiles, PartFiles]:
    """The files of the passages, the queries and the judgements of a set.

    Raises: UserError naming what a folder lacks.
    """
    if not config.folder:
        return (
            PartFiles(config.name, config.corpus, config.kind),
            PartFiles(config.name, config.queries, config.kind),
            PartFiles(config.name, config.qrels, config.qrels_kind),
        )
    qrels = f"{config.folder}/qrels/{config.split}.tsv"
    if not find_files(qrels):
        there = find_files(f"{config.folder}/qrels/*.tsv")
        splits = ", ".join(name.rpartition("/")[2].removesuffix(".tsv") for name in there)
        raise UserError(
            f"evaluation set {config.name!r}: there is no {qrels}; "
            + (f"choose a split of: {splits}" if splits else "check the folder")
        )
    return (
        PartFiles(config.name, (_in_folder(config, "corpus"),), "jsonl"),
        PartFiles(config.name, (_in_folder(config, "queries"),), "jsonl"),
        PartFiles(config.name, (qrels,), "tsv"),
    )


def _in_folder(config: RetrievalSet, part: str) -> str:
    paths = [f"{config.folder}/{part}{ending}" for ending in _ENDINGS]
    found = next((path for path in paths if find_files(path)), None)
    if found is None:
        raise UserError(
            f"evaluation set {config.name!r}: {config.folder} has no {part}.jsonl, neither plain "
            f"nor as .gz or .zst"
        )
    return found


def _with_ids(files: PartFiles, id_field: str, text: str, title: str) -> Iterator[tuple[str, str]]:
    """Id and text of each row; no id comes twice."""
    seen: set[str] = set()
    for row in evaluation_rows(files):
        name = _id(row, id_field)
        if name in seen:
            raise row.error(f"has the id {name!r} in field {id_field!r}, as a row before it")
        seen.add(name)
        yield name, _text(row, text, title)


def _id(row: Row, field: str) -> str:
    value = row.field(field)
    if isinstance(value, bool) or not isinstance(value, str | int) or value == "":
        raise row.error(f"holds {value!r} in field {field!r}, not an id (a text or whole number)")
    return str(value)


def _text(row: Row, field: str, title: str) -> str:
    """The text, after its title where it has one: joined as mteb joins them."""
    heading = row.values.get(title) or ""
    if not isinstance(heading, str):
        raise row.error(f"holds {heading!r} in field {title!r}, not a title")
    if not heading:
        return row.text(field).strip()
    text = row.field(field)
    joined = f"{heading} {text}".strip() if isinstance(text, str) else ""
    if not joined:
        raise row.error(f"holds {text!r} in field {field!r}, not a text")
    return joined


def _judgements(
    config: RetrievalSet, files: PartFiles, queries: dict[str, str], passages: frozenset[str]
) -> dict[str, dict[str, int]]:
    """Query → passage → relevance."""
    query_field, passage_field, score_field = config.qrels_fields
    relevant: dict[str, dict[str, int]] = {}
    for row in evaluation_rows(files):
        query, passage = _id(row, query_field), _id(row, passage_field)
        for what, name, field, known in (
            ("query", query, query_field, queries),
            ("passage", passage, passage_field, passages),
        ):
            if name not in known:
                raise row.error(f"names the {what} {name!r} in field {field!r}, which is not there")
        score = _relevance(row, score_field)
        if relevant.setdefault(query, {}).setdefault(passage, score) != score:
            raise row.error(f"gives query {query!r} and passage {passage!r} another {score_field}")
    if not any(score > 0 for scores in relevant.values() for score in scores.values()):
        raise UserError(
            f"evaluation set {config.name!r} has no judgement above 0 in field {score_field!r}: "
            f"no passage is relevant"
        )
    return relevant


def _relevance(row: Row, field: str) -> int:
    value = row.field(field)
    try:
        score = None if isinstance(value, bool) else int(value)
    except (TypeError, ValueError, OverflowError):
        score = None
    if score is None or (isinstance(value, float) and score != value):
        raise row.error(f"holds {value!r} in field {field!r}, not a whole number")
    return score
