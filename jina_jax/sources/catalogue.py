"""Public data sets for the families of data that Jina Embeddings v1 was trained on.

The paper (arXiv 2307.11224) names families such as e-commerce search, duplicate detection, web
retrieval, article retrieval for question answering and text classification. It lists no data set
with its size or sampling weight; Reddit appears in its ablation of the filters, and its negation
set is published. So an entry here is a public data set of a family, not a statement that the paper
used it; `in_paper` marks the two that it does name. Many stand in the training lists of
sentence-transformers, whose files most entries read.

Licences are what the data set's own card or page says; a card that somebody else wrote is named;
`unknown` is what could not be verified. Look before you publish a model.
"""

import dataclasses
import functools
import tomllib
from dataclasses import dataclass
from importlib import resources
from typing import Any, Literal, get_args

from jina_jax.config import SourceConfig
from jina_jax.errors import UserError

_HUB = "https://huggingface.co/datasets/"
_COLLECTION = "embedding-training-data/"
"""Files of sentence-transformers/embedding-training-data."""

Family = Literal[
    "web search", "question answering", "duplicate questions", "e-commerce", "title and body",
    "NLI", "captions", "citations", "paraphrases", "code", "negation",
]  # fmt: skip
FAMILIES: tuple[Family, ...] = get_args(Family)


@dataclass(frozen=True)
class CatalogueEntry:
    """A data set: where it comes from and how it is read."""

    family: Family
    source: SourceConfig
    """How it is read; paths are relative to the folder of downloads."""
    where: str
    """Page or file to fetch it from."""
    shape: str
    """A record, shortened."""
    note: str = ""
    in_paper: bool = False
    """Whether the paper names it."""

    @property
    def name(self) -> str:
        """Name of the entry and of its source."""
        return self.source.name

    @property
    def holds(self) -> Literal["pairs", "triplets"]:
        """What is read from it."""
        return "triplets" if self.source.negative_field else "pairs"


@functools.cache
def entries() -> dict[str, CatalogueEntry]:
    """All entries of catalogue.toml, by name."""
    text = resources.files("jina_jax.sources").joinpath("catalogue.toml").read_text("utf-8")
    return {name: _entry(name, values) for name, values in tomllib.loads(text).items()}


def _entry(name: str, values: dict[str, Any]) -> CatalogueEntry:
    fields = {f.name for f in dataclasses.fields(SourceConfig)} & values.keys()
    read: dict[str, Any] = {field: values.pop(field) for field in fields}
    source = SourceConfig(name, **read | {"paths": tuple(read.get("paths", ()))})
    if "where" not in values:
        # The page on the hub, or a file of the collection.
        file = source.paths[0].removeprefix(_COLLECTION) if source.paths else ""
        in_collection = f"sentence-transformers/{_COLLECTION}resolve/main/{file}"
        values["where"] = _HUB + (source.dataset or in_collection)
    if "shape" not in values:
        names = (source.query_field, source.positive_field, source.negative_field)
        values["shape"] = "{" + ", ".join(f'"{name}": text' for name in names if name) + "}"
    return CatalogueEntry(source=source, **values)


def catalogue_source(name: str, raw: str = "raw") -> SourceConfig:
    """The source of an entry; change more of it with `dataclasses.replace`.

    Args:
      name: of the entry.
      raw: folder that its files lie in.
    Raises: UserError naming the entries if there is no such one.
    """
    entry = entries().get(name)
    if entry is None:
        known = ", ".join(sorted(entries()))
        raise UserError(f"the catalogue has no entry {name!r}; it has {known}")
    paths = tuple(f"{raw.rstrip('/')}/{path}" for path in entry.source.paths)
    return dataclasses.replace(entry.source, paths=paths)
