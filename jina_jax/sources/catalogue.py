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

from jina_jax.config import SourceConfig
from jina_jax.errors import UserError
from jina_jax.sources.catalogue_entries import ENTRIES


def catalogue_source(name: str, raw: str = "raw") -> SourceConfig:
    """The source of an entry; `dataclasses.replace` changes what else is wanted.

    Args:
      name: of the entry.
      raw: folder that its files lie in.
    Raises: UserError naming the entries when there is no such one.
    """
    entry = {entry.name: entry for entry in ENTRIES}.get(name)
    if entry is None:
        known = ", ".join(sorted(entry.name for entry in ENTRIES))
        raise UserError(f"the catalogue has no entry {name!r}; it has {known}")
    paths = tuple(f"{raw.rstrip('/')}/{path}" for path in entry.source.paths)
    return dataclasses.replace(entry.source, paths=paths)
