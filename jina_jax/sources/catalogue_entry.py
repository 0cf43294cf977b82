"""An entry of the catalogue, and the three ways in which most are written."""

from dataclasses import dataclass
from typing import Literal, get_args

from jina_jax.config import SourceConfig

HUB = "https://huggingface.co/datasets/"
_COLLECTION = f"{HUB}sentence-transformers/embedding-training-data"

Family = Literal[
    "web search",
    "question answering",
    "duplicate questions",
    "e-commerce",
    "title and body",
    "NLI",
    "captions",
    "citations",
    "paraphrases",
    "code",
    "negation",
]
FAMILIES: tuple[Family, ...] = get_args(Family)


@dataclass(frozen=True)
class CatalogueEntry:
    """A data set: where it is had and how it is read."""

    family: Family
    source: SourceConfig
    """How it is read; paths are relative to the folder of downloads."""
    where: str
    """Page or file to fetch it from."""
    shape: str
    """A record, shortened."""
    holds: Literal["pairs", "triplets"] = "pairs"
    note: str = ""
    in_paper: bool = False
    """Whether the paper names it."""

    @property
    def name(self) -> str:
        """Name of the entry and of its source."""
        return self.source.name


def collection_file(
    name: str,
    family: Family,
    file: str,
    shape: str,
    licence: str = "unknown",
    holds: Literal["pairs", "triplets"] = "pairs",
    note: str = "",
) -> CatalogueEntry:
    """A file of sentence-transformers/embedding-training-data."""
    source = SourceConfig(
        name,
        "jsonl",
        (f"embedding-training-data/{file}",),
        extractor="embedding_texts",
        negative_field="negative" if holds == "triplets" else "",
        licence=licence,
    )
    return CatalogueEntry(family, source, f"{_COLLECTION}/resolve/main/{file}", shape, holds, note)


def hub_table(
    name: str,
    family: Family,
    dataset: str,
    subset: str,
    fields: tuple[str, ...],
    licence: str = "unknown",
    note: str = "",
    in_paper: bool = False,
) -> CatalogueEntry:
    """A table on the hub, two columns of texts or three."""
    query, positive, *negative = fields
    source = SourceConfig(
        name,
        "hf",
        dataset=dataset,
        subset=subset,
        query_field=query,
        positive_field=positive,
        negative_field=negative[0] if negative else "",
        licence=licence,
    )
    shape = "{" + ", ".join(f'"{field}": text' for field in fields) + "}"
    holds: Literal["pairs", "triplets"] = "triplets" if negative else "pairs"
    return CatalogueEntry(family, source, HUB + dataset, shape, holds, note, in_paper)


def hub_records(
    name: str,
    family: Family,
    dataset: str,
    subset: str,
    extractor: str,
    shape: str,
    licence: str = "unknown",
    holds: Literal["pairs", "triplets"] = "pairs",
    note: str = "",
) -> CatalogueEntry:
    """A data set on the hub whose records need an extractor."""
    source = SourceConfig(
        name,
        "hf",
        dataset=dataset,
        subset=subset,
        extractor=extractor,
        negative_field="negative" if holds == "triplets" else "",
        licence=licence,
    )
    return CatalogueEntry(family, source, HUB + dataset, shape, holds, note)
