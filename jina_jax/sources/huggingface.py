"""Reader of Hugging Face data sets: by id, or from a local folder."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from jina_jax.config import SourceConfig
from jina_jax.errors import UserError
from jina_jax.sources.records import Record
from jina_jax.types import Origin


def read_hf(source: SourceConfig) -> Iterator[Record]:
    """Reads a split of a data set in its stored order, without holding it.

    Args:
      source: `dataset` is an id on the hub, a folder written by `save_to_disk`, or a folder of
        Parquet, JSON or CSV files; `subset` is its configuration, `revision` a commit, branch or
        tag of an id. Ids are streamed: nothing is downloaded ahead.
    Returns: a dict a row. Origin.file is `ID/SPLIT`.
    Raises: UserError when `datasets` is not installed or the data set cannot be had.
    """
    rows = _open(source)
    name = f"{source.dataset}/{source.split}"
    row = 0
    try:
        for row, value in enumerate(rows, start=1):
            yield Record(value, Origin(name, row))
    except (OSError, ValueError, RuntimeError) as error:
        raise _unusable(source, error, f" after row {row}") from error


def _open(source: SourceConfig) -> Any:
    try:
        import datasets
    except ImportError as error:
        raise UserError(
            f"source {source.name!r} is a Hugging Face data set: pip install 'jina-jax[hf]'"
        ) from error
    folder = Path(source.dataset).expanduser()
    try:
        if (folder / "dataset_dict.json").is_file() or (folder / "dataset_info.json").is_file():
            loaded = datasets.load_from_disk(str(folder))
            return loaded[source.split] if isinstance(loaded, datasets.DatasetDict) else loaded
        return datasets.load_dataset(
            str(folder) if folder.is_dir() else source.dataset,
            source.subset or None,
            split=source.split,
            revision=source.revision or None,
            streaming=True,
        )
    except Exception as error:  # The hub, its cache and its loaders raise kinds of their own.
        raise _unusable(source, error) from error


def _unusable(source: SourceConfig, error: Exception, where: str = "") -> UserError:
    local = source.dataset.rpartition("/")[2]
    return UserError(
        f"source {source.name!r}: split {source.split!r} of the Hugging Face data set "
        f"{source.dataset!r} cannot be read{where} ({type(error).__name__}: "
        f"{str(error).strip()[:500]}). Check the id, subset, split and revision; on a machine "
        f"without a network fetch it elsewhere with `hf download {source.dataset} --repo-type "
        f"dataset --local-dir raw/{local}` and set dataset to that folder"
    )
