"""Where the records of a run come from."""

from dataclasses import dataclass
from typing import Literal

from jina_jax.config.fields import PositiveFloat


@dataclass(frozen=True)
class SourceConfig:
    """Where pairs or triplets come from."""

    name: str
    """Names the source in shards, metrics and reports: letters, digits, '_' and '-'."""
    kind: Literal["jsonl", "parquet", "csv", "tsv", "text", "pydocs", "tfds", "hf"] = "jsonl"
    """File format (text also as .gz or .zst; `text` is lines for an extractor), `tfds` or `hf` for
    a data set of TFDS or Hugging Face, or `pydocs`: docstrings of installed packages."""
    paths: tuple[str, ...] = ()
    """Files or globs. For `pydocs`: top-level packages to read; empty reads all installed ones.
    For `tfds`: the data folder; empty takes TFDS's own."""
    dataset: str = ""
    """For `tfds` and `hf`: name or id of the data set, or the folder of a local one."""
    subset: str = ""
    """For `tfds` and `hf`: configuration of the data set."""
    split: str = "train"
    """For `tfds` and `hf`: split of the data set."""
    revision: str = ""
    """For `hf`: commit, branch or tag. For `tfds`: version."""
    extractor: str = ""
    """How texts are taken out of a record that is more than two fields (sources/extract.py lists
    them); empty takes the fields named below. One that gives triplets wants a `negative_field`,
    whatever its name. Not for csv, tsv and pydocs."""
    query_field: str = "query"
    """Field or column that holds the query."""
    positive_field: str = "positive"
    """Field or column that holds the positive passage."""
    negative_field: str = ""
    """Field or column that holds the hard negative of a triplet; empty for pairs. Triplets are not
    deduplicated, and no filter for pairs looks at them."""
    weight: PositiveFloat | None = None
    """Relative share of batches drawn from this source; None leaves it to `mixture`: 1, or by the
    source's records. `mixture.stages` change it during a run."""
    max_epochs: PositiveFloat | None = None
    """Draw no more batches once its records were seen this often; its share goes to the others."""
    licence: str = "unknown"
    """Licence of the text; copied to the manifest and the model card."""
    limit: int | None = None
    """Read at most this many records."""
