"""Records of data sets: of Hugging Face, by id or from a local folder, and of TFDS, stored as
ArrayRecord, without TensorFlow.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import astuple, dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from jina_jax.config import SourceConfig
from jina_jax.errors import UserError
from jina_jax.sources.records import Record
from jina_jax.system.files import file_state
from jina_jax.system.hashing import content_key
from jina_jax.system.untrusted import objects_within, parse_json, read_json
from jina_jax.types import BadRecord, Origin


@dataclass(frozen=True)
class DataSetExtent:
    """What a split of a data set is made of."""

    units: int
    """What `start` and `end` of its reader count: rows, or shards of what is streamed."""
    size_bytes: int
    """0 where that is not known."""
    files: tuple[str, ...]
    """Files of this file system that hold it; none of what lies on the hub."""
    stamp: str
    """Changes when the data set does."""


def data_set_extent(source: SourceConfig) -> DataSetExtent:
    """How large the split of a source is, and in what state.

    Args:
      source: of kind `hf` or `tfds`.
    Raises: UserError as `read_hf` and `read_tfds`.
    """
    if source.kind == "tfds":
        examples, _, folder = _open_tfds(source)
        paths = (path for path in sorted(folder.iterdir()) if path.is_file())
        return _extent(len(examples), map(str, paths), [])
    rows, files, origin = _open_hf(source)
    local = [file for file in files if Path(file).is_file()]
    units = rows.num_shards if _is_streamed(rows) else len(rows)
    return _extent(units, local, [file for file in files if file not in local] + origin)


def _extent(units: int, files: Iterable[str], more: Sequence[str]) -> DataSetExtent:
    states = {file: file_state(file) for file in files}
    size_bytes = sum(state.size_bytes for state in states.values())
    stamp = content_key([astuple(state) for state in states.values()], list(more))
    return DataSetExtent(units, 0 if more else size_bytes, tuple(states), stamp)


def read_hf(source: SourceConfig, start: int = 0, end: int | None = None) -> Iterator[Record]:
    """Reads a split of a data set, or a part of it, in its stored order, without holding it.

    Args:
      source: `dataset` is an id on the hub, a folder written by `save_to_disk`, or a folder of
        Parquet, JSON or CSV files; `subset` is its configuration, `revision` a commit, branch or
        tag of an id. Ids are streamed: nothing is downloaded ahead.
      start: first unit of `data_set_extent`.
      end: the unit after the last; None reads to the end.
    Returns: a dict a row, counted from 1 at the first that is read. Origin.file is `ID/SPLIT`.
    Raises: UserError when `datasets` is not installed or the data set cannot be had.
    """
    rows, _, _ = _open_hf(source)
    name = f"{source.dataset}/{source.split}"
    row = 0
    try:
        for row, value in enumerate(_part_of_hf(rows, start, end), start=1):
            yield Record(value, Origin(name, row))
    except (OSError, ValueError, RuntimeError) as error:
        raise _unusable(source, error, f" after row {row}") from error


def _is_streamed(rows: Any) -> bool:
    return not hasattr(rows, "__len__")


def _part_of_hf(rows: Any, start: int, end: int | None) -> Iterable[Any]:
    if start == 0 and end is None:
        return rows
    if not _is_streamed(rows):
        return rows.select(range(start, len(rows) if end is None else end))
    shards = rows.num_shards
    numbers = range(start, shards if end is None else end)
    return chain.from_iterable(rows.shard(num_shards=shards, index=number) for number in numbers)


def _open_hf(source: SourceConfig) -> tuple[Any, list[str], list[str]]:
    """The rows of a split, its files, and what else tells that it changed: commits on the hub."""
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
            rows = loaded[source.split] if isinstance(loaded, datasets.DatasetDict) else loaded
            return rows, [file["filename"] for file in rows.cache_files], []
        builder = datasets.load_dataset_builder(
            str(folder) if folder.is_dir() else source.dataset,
            source.subset or None,
            revision=source.revision or None,
        )
        rows = builder.as_streaming_dataset(split=source.split)
        files = (builder.config.data_files or {}).get(source.split)
        if files is None:
            return rows, [], [builder.hash]
        # Of a file on the hub its repository and commit; of a local one its time.
        commits = [str(origin) for origin in files.origin_metadata if len(origin) > 1]
        return rows, list(files), list(dict.fromkeys(commits))
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


_BATCH_RECORDS = 256
FEATURES_FILE = "features.json"
_CLASS_KEYS = ("type", "pythonClassName", "python_class_name")
_OWN = "tensorflow_datasets."


def read_tfds(
    source: SourceConfig, start: int = 0, end: int | None = None
) -> Iterator[Record | BadRecord]:
    """Reads a split of a prepared TFDS data set, or a part of it, in its stored order.

    Args:
      source: `dataset` is a folder that holds a prepared version (features.json), or the name of
        a data set below the data folder `paths[0]` (TFDS's own by default) with `subset` as its
        configuration and `revision` as its version.
      start: first record.
      end: the record after the last; None reads to the end.
    Returns: a dict a record, counted from 1 at the first that is read; texts, which TFDS stores as
      bytes, are decoded, arrays are lists.
      Origin.file is `NAME/SPLIT`.
    Raises: UserError when TFDS is not installed, the data set is not there, or was not prepared
      as ArrayRecord.
    """
    examples, name, _ = _open_tfds(source)
    end = len(examples) if end is None else end
    for first in range(start, end, _BATCH_RECORDS):
        rows = range(first, min(first + _BATCH_RECORDS, end))
        for row, example in zip(rows, examples.__getitems__(list(rows)), strict=True):
            origin = Origin(f"{name}/{source.split}", row - start + 1)
            try:
                yield Record(plain(example), origin)
            except UnicodeDecodeError as error:
                yield BadRecord("invalid_utf8", f"byte {error.start + 1}: {error.reason}", origin)


def plain(value: Any) -> Any:
    """A TFDS example as dicts, lists, texts and numbers.

    Raises: UnicodeDecodeError for bytes that are no UTF-8.
    """
    if isinstance(value, dict):
        return {name: plain(item) for name, item in value.items()}
    if isinstance(value, bytes):
        return value.decode()
    if isinstance(value, np.ndarray | np.generic):
        return plain(value.tolist())
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return value


def _open_tfds(source: SourceConfig) -> tuple[Any, str, Path]:
    """The examples of a split, the name of the data set, and the folder that holds it."""
    try:
        import tensorflow_datasets as tfds
    except ImportError as error:
        raise UserError(
            f"source {source.name!r} is a TFDS data set: pip install 'jina-jax[tfds]'"
        ) from error
    folder = Path(source.dataset).expanduser()
    data_dir = source.paths[0] if source.paths else None
    name = source.dataset
    if source.subset:
        name = f"{name}/{source.subset}"
    if source.revision:
        name = f"{name}:{source.revision}"
    stored = folder if (folder / FEATURES_FILE).is_file() else _stored(data_dir, source.dataset)
    for path in stored.rglob(FEATURES_FILE) if stored.is_dir() else ():
        try:
            _refuse_foreign_classes(path, read_json(path))
        except ValueError as error:
            raise UserError(f"{path} is damaged: {error}") from error
    try:
        if (folder / FEATURES_FILE).is_file():
            name = str(folder)
            builder = tfds.builder_from_directory(name)
        else:
            builder = tfds.builder(name, data_dir=data_dir, file_format="array_record")
        return builder.as_data_source(split=source.split), name, Path(builder.data_path)
    except Exception as error:  # TFDS raises a dozen kinds, most of them bare.
        raise UserError(
            f"source {source.name!r}: TFDS cannot read split {source.split!r} of {name!r} "
            f"({type(error).__name__}: {str(error).strip()[:500]}). Give the folder that holds "
            f'features.json, or prepare it where there is a network: python -c "import '
            f"tensorflow_datasets as tfds; tfds.builder('{name}', "
            f"file_format='array_record').download_and_prepare()\""
        ) from error


def _stored(data_dir: str | None, dataset: str) -> Path:
    """Where TFDS looks for a data set by its name."""
    from tensorflow_datasets.core import constants

    return Path(data_dir or constants.DATA_DIR).expanduser() / dataset.partition(":")[0]


def _refuse_foreign_classes(path: Path, features: Any) -> None:
    """Refuses features of other classes than TFDS's own: it would import the modules they name."""
    waiting = [features]
    while waiting:
        for inner in objects_within(waiting.pop()):
            for key, value in inner.items():
                if not isinstance(value, str):
                    continue
                if key == "json":
                    # What a feature holds is stored as JSON within JSON.
                    waiting.append(parse_json(value))
                elif key in _CLASS_KEYS and "." in value and not value.startswith(_OWN):
                    raise UserError(
                        f"{path} names the class {value!r:.200}, and TFDS would import its module; "
                        f"only features of {_OWN[:-1]} are read. Convert the data set where you "
                        f"trust it, to Parquet or JSONL"
                    )
