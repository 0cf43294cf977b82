"""What is evaluated: sets of one's own, what `evaluate` measures, and suites of tasks of MTEB."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from jina_jax.config.fields import NonNegativeInt, PositiveInt, changeable

Precision = Literal["float32", "float16", "int8", "uint8", "binary", "ubinary"]
"""Of the numbers of an embedding, as `inference.quantised.quantize` has them."""


@dataclass(frozen=True)
class FileSet:
    """A set that lies in files."""

    name: str
    """The task, as the results name it."""
    paths: tuple[str, ...]
    """Files or globs."""
    kind: Literal["auto", "jsonl", "json", "parquet", "arrow", "csv", "tsv", "text"] = "auto"
    """File format, which `auto` takes from each file's ending, as in a source; `text` is lines
    whose cells are parted by tabs, without header or quotes."""
    fields: tuple[str, ...] = ()
    """Fields or columns that are read; for `text` their numbers from 1."""


@dataclass(frozen=True)
class StsSet(FileSet):
    """Pairs of texts with a score of how similar they are (semantic textual similarity)."""

    fields: tuple[str, str, str] = ("sentence1", "sentence2", "score")
    """Fields or columns of the two texts and of the score, a number of any scale; for `text` their
    numbers from 1 (of the STS Benchmark's files 6, 7 and 5)."""


@dataclass(frozen=True)
class RerankingSet(FileSet):
    """Queries, each with relevant and other passages."""

    kind: Literal["auto", "jsonl", "json", "parquet", "arrow", "csv", "tsv"] = "auto"
    """File format, which `auto` takes from the ending. A record is a query with its
    passages. Of `csv` and `tsv`, whose cells hold one text, the rows of the same query are one, and
    a cell may be empty."""
    fields: tuple[str, str, str] = ("query", "positive", "negative")
    """Fields or columns of the query, the relevant passages and the others: a list of texts or one
    text."""


@dataclass(frozen=True)
class RetrievalSet:
    """Queries, the passages to search, and which of these are relevant (qrels): a folder in the
    layout of BEIR, or files.
    """

    name: str
    """The task, as the results name it."""
    folder: str = ""
    """Holds corpus.jsonl, queries.jsonl (both also .gz and .zst) and qrels/SPLIT.tsv, as BEIR's do,
    or folders of Parquet files in their places, as NanoBEIR's do."""
    split: str = "test"
    """Of the folder's qrels; and of its tables of passages and queries, where these are of several,
    as in NanoBEIR's folder of all sets."""
    corpus: tuple[str, ...] = ()
    """Files or globs of the passages, where there is no folder."""
    queries: tuple[str, ...] = ()
    """Of the queries; those without a row of qrels are left out."""
    qrels: tuple[str, ...] = ()
    """Of the judgements."""
    kind: Literal["auto", "jsonl", "json", "parquet", "arrow", "csv", "tsv"] = "auto"
    """Format of the files of passages and queries, which `auto` takes from each file's ending."""
    qrels_kind: Literal["auto", "jsonl", "json", "parquet", "arrow", "csv", "tsv"] = "auto"
    """Format of the files of judgements. csv begins with a header; tsv may, and without one
    may have TREC's four columns; a file of an ending that is not known is taken as tsv."""
    corpus_fields: tuple[str, str, str] = ("_id", "title", "text")
    """Of a passage's id, its title and its text. The title may be missing or empty; else it stands
    before the text, as in BEIR. Of a tsv without a header these are numbers: ("1", "", "2")."""
    query_fields: tuple[str, str] = ("_id", "text")
    """Of a query's id and its text."""
    qrels_fields: tuple[str, str, str] = ("query-id", "corpus-id", "score")
    """Of the ids of a query and of a passage, and of its relevance, a whole number: above 0 is
    relevant, and more is more so."""


@dataclass(frozen=True)
class NegationSet(FileSet):
    """Triplets of a sentence, what follows from it, and what contradicts both in nearly the same
    words.
    """

    fields: tuple[str, str, str] = ("query", "positive", "negative")
    """Fields or columns of the anchor, the entailment and the negative, as `jina-jax negation`
    writes them; of jinaai/negation-dataset anchor, entailment and negative. For `text` their
    numbers from 1."""


OwnSet = StsSet | RerankingSet | RetrievalSet | NegationSet
"""An evaluation set of one's own."""


@dataclass(frozen=True)
class EvaluateConfig:
    """What is measured: retrieval and negation on the held-out split, and sets of one's own."""

    top_k: PositiveInt = changeable(10)
    """Cut-off of nDCG@k, recall@k, MAP@k and MRR@k."""
    batch_rows: PositiveInt = changeable(32)
    """Packed rows encoded at once."""
    sts: tuple[StsSet, ...] = changeable(())
    """Sets whose scores are correlated with the cosines."""
    reranking: tuple[RerankingSet, ...] = changeable(())
    """Sets whose passages are ranked by cosine with their query."""
    retrieval: tuple[RetrievalSet, ...] = changeable(())
    """Sets whose whole corpus is searched, beside the held-out pairs."""
    negation: tuple[NegationSet, ...] = changeable(())
    """Sets of triplets, beside the held-out ones."""
    precisions: tuple[Precision, ...] = changeable(())
    """Measures the trained model also with its embeddings rounded so, as an index of them would be;
    int8 and uint8 divide the ranges of a set's first 4,096 texts."""
    every_steps: NonNegativeInt = changeable(0)
    """Evaluate during training whenever this many steps are done, and at the end; 0 never does.
    Figures go to evaluations.jsonl in the run folder and to TensorBoard."""
    keep_best: str = changeable("")
    """KIND/TASK/MEASURE, such as retrieval/average/ndcg@10, of which the checkpoint with the
    highest value is kept in best/, where everything that uses the run then takes its parameters
    from; empty takes the newest."""


def evaluate_problems(evaluate: EvaluateConfig) -> Iterator[str]:
    """What is wrong with the values, one sentence each."""
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
    for kind in ("sts", "reranking", "retrieval", "negation"):
        sets: Sequence[OwnSet] = getattr(evaluate, kind)
        names = [s.name for s in sets]
        for name in sorted({n for n in names if names.count(n) > 1}):
            yield f"two sets of evaluate.{kind} are named {name!r}: names must differ"
        for number, one in enumerate(sets):
            for problem in set_problems(one):
                yield f"evaluate.{kind}.{number} ({one.name}){problem}"


def set_problems(one: OwnSet) -> Iterator[str]:
    """What is wrong with the values of a set, each to be read after the set's name."""
    if one.name == "average":
        yield ": the mean of the sets has that name; choose another"
    if not one.name or "/" in one.name:
        yield ": a name must not be empty or hold '/', which parts it from the measure"
    if isinstance(one, RetrievalSet):
        files = [name for name in ("corpus", "queries", "qrels") if getattr(one, name)]
        if one.folder and files:
            yield f" has both a folder and {', '.join(files)}: give one of the two"
        if not one.folder and len(files) < 3:
            yield " needs a folder, or files for all of corpus, queries and qrels"
        if one.folder and (one.kind, one.qrels_kind) != ("auto", "auto"):
            yield ": what is in a folder goes by its endings; leave kind and qrels_kind at auto"
        return
    yield from file_problems(one)


def file_problems(one: FileSet) -> Iterator[str]:
    """What is wrong with the files and fields of a set, each to be read after the set's name."""
    if not one.paths:
        yield " has no paths"
    if one.kind == "text" and not all(f.isdecimal() and int(f) > 0 for f in one.fields):
        yield f": fields of kind `text` are column numbers from 1, got {', '.join(one.fields)}"


@dataclass(frozen=True)
class SuiteTask:
    """One task of MTEB."""

    name: str
    """As `mteb.get_task` knows it."""
    subsets: tuple[str, ...] = ()
    """Of a task in several languages, such as en-en; empty takes all."""
    splits: tuple[str, ...] = ()
    """Such as dev; empty takes the task's own."""


@dataclass(frozen=True)
class Suite:
    """Tasks that are run and averaged together."""

    name: str
    groups: dict[str, tuple[SuiteTask | OwnSet, ...]]
    """Name of a group → its tasks, of MTEB or sets of one's own (`evaluate_config`), which run
    through MTEB's task classes; each group has a mean of its own."""
