"""The sources of a run, and how much of it each has."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import PurePath
from typing import Literal

from jina_jax.config.fields import PositiveFloat, PositiveInt
from jina_jax.errors import UserError


@dataclass(frozen=True)
class PromptConfig:
    """Words before a text that tell the model what it is for, such as `query: `."""

    named: tuple[tuple[str, str], ...] = ()
    """Name and prompt of each. `query` stands before queries; `document`, or else `passage` or
    `corpus`, before what they search. They are exported, and `encode` takes any by its name."""
    default: str = ""
    """Name of the one for texts that are neither query nor document; empty for none."""

    def find(self, name: str) -> str:
        """The prompt of that name; an empty name is that of no prompt.

        Raises: UserError where there is none.
        """
        if name and name not in dict(self.named):
            known = ", ".join(name for name, _ in self.named)
            raise UserError(
                f"no prompt is named {name!r}; {f'there are {known}' if known else 'it has none'}"
            )
        return dict(self.named).get(name, "")

    @property
    def query(self) -> str:
        """Before a query."""
        return self._first("query")

    @property
    def document(self) -> str:
        """Before what is searched. Source: sentence-transformers, `encode_document`."""
        return self._first("document", "passage", "corpus")

    @property
    def other(self) -> str:
        """Before a text that is neither."""
        return self.find(self.default)

    def _first(self, *names: str) -> str:
        found = dict(self.named)
        return next((found[name] for name in names if name in found), self.other)


_KIND_OF_ENDING = {
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "json",
    ".parquet": "parquet",
    ".arrow": "arrow",
    ".csv": "csv",
    ".tsv": "tsv",
}
FILE_KINDS = (*dict.fromkeys(_KIND_OF_ENDING.values()), "text")
"""Of files, beside `auto`."""


def kind_of_ending(path: str) -> str:
    """The format that a path's ending names, before .gz or .zst; empty where it names none."""
    plain = path.removesuffix(".gz").removesuffix(".zst")
    return _KIND_OF_ENDING.get(PurePath(plain).suffix.lower(), "")


NUMBERS = "*"
"""In the name of a field: any number."""


@dataclass(frozen=True)
class SourceConfig:
    """Where pairs or triplets come from."""

    name: str
    """Names the source in shards, metrics and reports: letters, digits, '_' and '-'."""
    kind: Literal[
        "auto", "jsonl", "json", "parquet", "arrow", "csv", "tsv", "text", "pydocs", "tfds", "hf"
    ] = "auto"
    """File format, which `auto` takes from each file's ending (.jsonl, .json, .parquet, .arrow,
    .csv, .tsv, each also .gz and .zst). `json` is an array of records, or a record a line; `text`
    is lines for an extractor; `tfds` or `hf` a data set of TFDS or Hugging Face; `pydocs` the
    docstrings of installed packages."""
    paths: tuple[str, ...] = ()
    """Files, globs, or folders, of which all files of data are taken. For `pydocs`: top-level
    packages to read; empty reads all installed ones. For `tfds`: the data folder; empty takes
    TFDS's own."""
    dataset: str = ""
    """For `tfds` and `hf`: name or id of the data set, or the folder of a local one."""
    subset: str = ""
    """For `tfds` and `hf`: configuration of the data set."""
    split: str = "train"
    """For `tfds` and `hf`, and for folders that `datasets` saved: split of the data set."""
    revision: str = ""
    """For `hf`: commit, branch or tag. For `tfds`: version."""
    extractor: str = ""
    """How texts are taken out of a record that is more than its fields (sources/extract.py lists
    them); empty takes the fields named below. One that gives triplets wants a `negative_field`,
    whatever its name. Not for pydocs."""
    query_field: str = ""
    """Field or column that holds the query. A dot leads into an object (`data.question`); of a tsv
    or csv without a header it is a number from 1. Empty finds it by its name: query, question,
    anchor, sentence1, premise, ..., and so the others; what is found is said."""
    positive_field: str = ""
    """Field or column that holds the positive passage, or a list of such: each makes a record.
    Empty finds it: positive, pos, passage, answer, document, sentence2, entailment, ..."""
    negative_field: str = ""
    """Field or column that holds the hard negative of a triplet, or a list of such; `negative_*`
    are negative_1, negative_2, ... A pair without one is kept. Empty finds it where query_field and
    positive_field are empty too; beside names it means pairs. No filter for pairs looks at
    triplets."""
    label_field: str = ""
    """Field that holds a label, a text, a whole number or a boolean; empty for none. Records of one
    label are then no negatives of each other (`loss`). A record without one is a bad one. Not with
    an extractor."""
    score_field: str = ""
    """Field that holds a score: its records are scored pairs, two texts and how much they have in
    common, a number of any scale, and the losses of pairs and triplets are not theirs. Filters of
    consistency, margin and near-duplicates pass them on as they are. Not with a negative_field or
    an extractor."""
    query_prompt: str | None = None
    """Stands before each query of this source, for the tokenizer alone: filters, negations and
    mining see the text without it. None takes the one of `data.prompts`."""
    positive_prompt: str | None = None
    """Stands before each positive and hard negative; None takes the document's of
    `data.prompts`."""
    weight: PositiveFloat | None = None
    """Relative share of batches drawn from this source; None leaves it to `mixture`: 1, or by the
    source's records. `mixture.stages` change it during a run."""
    in_batch: bool = True
    """Whether the texts of other records are negatives of a query. False for data in which they are
    false ones, such as classification: then only a record's own hard negatives count (the second
    stage of NV-Embed, arXiv 2405.17428)."""
    max_epochs: PositiveFloat | None = None
    """Draw no more batches once its records were seen this often; its share goes to the others."""
    licence: str = "unknown"
    """Licence of the text; copied to the manifest and the model card."""
    limit: int | None = None
    """Read at most this many records."""

    @property
    def finds_negatives(self) -> bool:
        """Whether its files tell if it is of pairs or of triplets."""
        named = self.query_field or self.positive_field or self.negative_field
        return not (named or self.score_field)


@dataclass(frozen=True)
class StageConfig:
    """Weights from one step on."""

    from_step: int
    """0 replaces the sources' own weights; 1 is the second batch."""
    weights: tuple[tuple[str, float], ...]
    """Names of sources and their weights, 0 for none; the others keep what they had before."""


@dataclass(frozen=True)
class MixtureConfig:
    """Shares of batches, beside each source's `weight` and `max_epochs`.

    They are functions of the step and the sizes of the sources alone, so that a resumed run goes
    on with the same batches. The mixing is T5's (Raffel et al. 2020, section 3.5.2).
    """

    temperature: PositiveFloat | None = None
    """Sources without a `weight` of their own have records ** (1 / temperature): 1 is in proportion
    to their records, more is nearer to equal. None gives them equal weights. Their mean is 1
    either way, which is what the weight of another source compares with."""
    size_limit: PositiveInt | None = None
    """For the temperature, no source counts as more records than this."""
    stages: tuple[StageConfig, ...] = ()
    """Other weights later in the run, by ascending step."""
    change: Literal["steps", "linear"] = "steps"
    """Whether shares change at once where a stage begins, or on straight lines from one stage's
    beginning to the next's."""


def mixture_problems(mixture: MixtureConfig, weights: dict[str, float | None]) -> Iterator[str]:
    """What is wrong with a mixture, a sentence each.

    Args:
      mixture: to be checked.
      weights: name of each source → its own weight.
    """
    if mixture.size_limit is not None and mixture.temperature is None:
        yield (
            "mixture.size_limit has no effect without mixture.temperature; set it to 1 for weights "
            "in proportion to records"
        )
    weights = dict(weights)
    before = -1
    for i, stage in enumerate(mixture.stages):
        which = f"mixture.stages.{i}"
        if stage.from_step <= before:
            yield (
                f"{which}.from_step={stage.from_step} must be "
                f"{'0 or more' if i == 0 else f'above that of the stage before, {before}'}"
            )
        before = stage.from_step
        named = [name for name, _ in stage.weights]
        for name in sorted({n for n in named if named.count(n) > 1}):
            yield f"{which} names {name!r} twice"
        for name, weight in stage.weights:
            if name not in weights:
                yield f"{which}: no source is named {name!r}; they are {', '.join(weights)}"
            elif not 0 <= weight < float("inf"):
                yield f"{which}: the weight of {name!r} is {weight} and must be 0 or more"
            weights[name] = weight
        if weights and all(weight == 0 for weight in weights.values()):
            yield f"{which} leaves no source: all weights are 0"


def prompts_of(source: SourceConfig, prompts: PromptConfig) -> tuple[str, str]:
    """What stands before the queries of a source, and before its other texts."""
    query, positive = source.query_prompt, source.positive_prompt
    return (
        prompts.query if query is None else query,
        prompts.document if positive is None else positive,
    )
