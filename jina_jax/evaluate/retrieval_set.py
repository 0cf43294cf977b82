"""Retrieval sets of one's own: files in the layouts of BEIR, NanoBEIR and TREC, and plain ones."""

from collections import Counter
from collections.abc import Iterator
from typing import Any, NamedTuple

import xxhash

from jina_jax.config import RetrievalSet
from jina_jax.config.source import kind_of_ending
from jina_jax.errors import UserError
from jina_jax.evaluate.retrieval import Corpus, RetrievalTask
from jina_jax.sources.kinds import file_kind
from jina_jax.sources.lines import Damage, read_lines
from jina_jax.sources.rows import Row, evaluation_files, evaluation_rows
from jina_jax.system.files import find_files
from jina_jax.system.terminal import say

_ENDINGS = (".jsonl", ".jsonl.gz", ".jsonl.zst")
_MOST_UNKNOWN = 0.5
"""Of the judgements: with more, the files are of two sets."""


class PartFiles(NamedTuple):
    """Of one of the three parts of a set."""

    name: str
    paths: tuple[str, ...]
    kind: str = "auto"
    fields: tuple[str, ...] = ()


def read_retrieval(config: RetrievalSet) -> RetrievalTask:
    """Reads queries and judgements of a set, and checks its passages.

    The passages' ids are held, their texts are not: they are read again whenever they are asked
    for. What published sets have is counted, said and gone on with: queries without a judgement and
    judgements of what is not there are left out, rows that come twice are taken once, and a text
    may be empty.

    Raises: UserError naming the file and row that cannot be read or has an id of another text; when
      most judgements are of what is not there; and when nothing is judged.
    """
    corpus_files, query_files, qrels_files = retrieval_files(config)
    queries = {item.name: item.text for item in _items(query_files, *config.query_fields, "")}
    id_field, title, text = config.corpus_fields
    ids, own, digest = [], set(), xxhash.xxh3_128()
    for item in _items(corpus_files, id_field, text, title):
        ids.append(item.name)
        digest.update(f"{item.titled}\0".encode("utf-8", "surrogatepass"))
        # A passage of the query's id is the query only where it has its text.
        if queries.get(item.name) in (item.text, item.titled):
            own.add(item.name)
    relevant = _judgements(config, qrels_files, queries, frozenset(ids))
    if left_out := len(queries) - len(relevant):
        say(f"{config.name}: {left_out:,} of {len(queries):,} queries are not judged and left out")
    own &= relevant.keys()
    if own:
        say(f"{config.name}: {len(own):,} queries are passages too, and are not found themselves")

    def texts() -> Iterator[str]:
        return (item.titled for item in _items(corpus_files, id_field, text, title, told=True))

    kept = {name: query for name, query in queries.items() if name in relevant}
    corpus = Corpus(ids, texts, digest.hexdigest())
    return RetrievalTask(config.name, kept, corpus, relevant, None, frozenset(own))


def retrieval_files(config: RetrievalSet) -> tuple[PartFiles, PartFiles, PartFiles]:
    """The files of the passages, the queries and the judgements of a set.

    Raises: UserError naming what a folder lacks.
    """
    if not config.folder:
        return (
            PartFiles(config.name, config.corpus, config.kind, _named(config.corpus_fields)),
            PartFiles(config.name, config.queries, config.kind, config.query_fields),
            PartFiles(config.name, config.qrels, config.qrels_kind),
        )
    return _in_folder(config, "corpus"), _in_folder(config, "queries"), _qrels_in_folder(config)


def _named(fields: tuple[str, ...]) -> tuple[str, ...]:
    """Without those that are left empty: a set may have no titles."""
    return tuple(filter(None, fields))


def _in_folder(config: RetrievalSet, part: str) -> PartFiles:
    for ending in _ENDINGS:
        if find_files(f"{config.folder}/{part}{ending}"):
            return PartFiles(config.name, (f"{config.folder}/{part}{ending}",))
    if tables := find_files(f"{config.folder}/{part}/*.parquet"):
        # A folder of all sets of NanoBEIR has in each part a table of each set's name.
        of_split = [path for path in tables if _split(path) == config.split]
        return PartFiles(config.name, tuple(of_split or tables))
    raise UserError(
        f"evaluation set {config.name!r}: {config.folder} has no {part}.jsonl, neither plain nor "
        f"as .gz or .zst, and no {part}/*.parquet"
    )


def _qrels_in_folder(config: RetrievalSet) -> PartFiles:
    found = [
        *find_files(f"{config.folder}/qrels/*.tsv"), *find_files(f"{config.folder}/qrels/*.parquet")
    ]  # fmt: skip
    by_split: dict[str, list[str]] = {}
    for path in found:
        by_split.setdefault(_split(path), []).append(path)
    if config.split not in by_split:
        there = f"choose a split of: {', '.join(by_split)}" if by_split else "check the folder"
        raise UserError(
            f"evaluation set {config.name!r}: there is no {config.folder}/qrels/{config.split}.tsv "
            f"or .parquet; {there}"
        )
    return PartFiles(config.name, tuple(by_split[config.split]))


def _split(path: str) -> str:
    """That a file is of; of the hub's tables the name goes on: train-00000-of-00001.parquet."""
    return path.rpartition("/")[2].rpartition(".")[0].partition("-0")[0]


class _Item(NamedTuple):
    """A query or passage."""

    name: str
    text: str
    titled: str
    """The text after its title where it has one: joined as mteb joins them."""


def _items(
    files: PartFiles, id_field: str, text: str, title: str, *, told: bool = False
) -> Iterator[_Item]:
    """Each query or passage, once; says what was passed over, unless that is told already."""
    seen: dict[str, int] = {}
    counts: Counter[str] = Counter()
    for row in evaluation_rows(files):
        name, value = _id(row, id_field), row.field(text)
        heading = (title and row.values.get(title)) or ""
        if not isinstance(heading, str):
            raise row.error(f"holds {heading!r} in field {title!r}, not a title")
        if not isinstance(value, str):
            raise row.error(f"holds {value!r} in field {text!r}, not a text")
        item = _Item(name, value.strip(), f"{heading} {value}".strip())
        if name in seen:
            if seen[name] != hash(item):
                raise row.error(
                    f"has the id {name!r} in field {id_field!r}, as a row before it with another "
                    f"text"
                )
            counts["come twice and are taken once"] += 1
            continue
        seen[name] = hash(item)
        counts["are empty"] += not item.titled
        yield item
    _say_counts(files, counts, told)


def _say_counts(files: PartFiles, counts: Counter[str], told: bool = False) -> None:
    for what, count in counts.items():
        say(
            f"{files.name}: {count:,} rows of {files.paths[0]} {what}",
            enabled=count > 0 and not told,
        )


def _id(row: Row, field: str) -> str:
    value = row.field(field)
    if isinstance(value, bool) or not isinstance(value, str | int) or value == "":
        raise row.error(f"holds {value!r} in field {field!r}, not an id (a text or whole number)")
    return str(value)


def _judgements(
    config: RetrievalSet, files: PartFiles, queries: dict[str, str], passages: frozenset[str]
) -> dict[str, dict[str, int]]:
    """Query → passage → relevance."""
    query_field, passage_field, score_field = config.qrels_fields
    relevant: dict[str, dict[str, int]] = {}
    unknown: list[UserError] = []
    counts: Counter[str] = Counter()
    rows = 0
    for row in _judged_rows(config, files):
        rows += 1
        query, passage = _id(row, query_field), _id(row, passage_field)
        missing = [
            f"the {what} {name!r} in field {field!r}"
            for what, name, field, known in (
                ("query", query, query_field, queries),
                ("passage", passage, passage_field, passages),
            )
            if name not in known
        ]
        if missing:
            unknown.append(row.error(f"names {missing[0]}, which is not there"))
            continue
        # NanoBEIR lists what is relevant, without a score.
        has_score = score_field in row.values or len(row.values) != 2
        score = _relevance(row, score_field) if has_score else 1
        if relevant.setdefault(query, {}).setdefault(passage, score) != score:
            raise row.error(f"gives query {query!r} and passage {passage!r} another {score_field}")
    if len(unknown) > _MOST_UNKNOWN * rows:
        raise UserError(
            f"{unknown[0]}, and so it is with {len(unknown):,} of {rows:,} judgements: the files "
            f"are of two sets"
        )
    counts["judge what is not there and are left out"] = len(unknown)
    _say_counts(files, counts)
    if not any(score > 0 for scores in relevant.values() for score in scores.values()):
        raise UserError(
            f"evaluation set {config.name!r} has no judgement above 0 in field {score_field!r}: "
            f"no passage is relevant"
        )
    return relevant


def _judged_rows(config: RetrievalSet, files: PartFiles) -> Iterator[Row]:
    """Rows of judgements; of a tsv without a header, and of TREC's four columns, too."""
    for path in evaluation_files(files):
        # TREC's files have any ending, or none.
        kind = files.kind if files.kind != "auto" or kind_of_ending(path) else "tsv"
        one = files._replace(paths=(path,), kind=kind)
        is_tsv = file_kind(path, kind) == "tsv"
        columns = _columns_without_header(path) if is_tsv else range(0)
        if not columns:
            yield from evaluation_rows(one)
            continue
        for row in evaluation_rows(one._replace(kind="text")):
            line = row.values[""]
            cells = line.split() if len(columns) == 4 else line.split("\t")
            if len(cells) != len(columns):
                raise row.error(f"has {len(cells)} columns, and the first row {len(columns)}")
            named = zip((columns[0], columns[-2], columns[-1]), config.qrels_fields, strict=True)
            yield row._replace(values={field: cells[column] for column, field in named})


def _columns_without_header(path: str) -> range:
    """Columns of a file that begins with a judgement: 4 of TREC (query, 0, passage, relevance) or
    3; none where it begins with a header.
    """
    line = next((line for _, line in read_lines(path)), b"")
    text = "" if isinstance(line, Damage) else line.decode(errors="replace")
    for cells in (text.split("\t"), text.split()):
        if len(cells) in (3, 4) and _whole(cells[-1]) is not None:
            return range(len(cells))
    return range(0)


def _whole(value: Any) -> int | None:
    """The whole number that a cell holds, such as 1, "1" or "1.0"."""
    try:
        number = None if isinstance(value, bool) else float(value)
    except (TypeError, ValueError, OverflowError):
        return None
    return int(number) if number is not None and number.is_integer() else None


def _relevance(row: Row, field: str) -> int:
    score = _whole(row.field(field))
    if score is None:
        raise row.error(f"holds {row.field(field)!r} in field {field!r}, not a whole number")
    return score
