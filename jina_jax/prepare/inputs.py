"""Which files the sources were read from, and whether they are still the same."""

from collections.abc import Sequence
from pathlib import Path

from jina_jax.config import DataConfig, SourceConfig
from jina_jax.errors import UserError
from jina_jax.prepare.engine.task import Task
from jina_jax.prepare.pipeline import Pipeline
from jina_jax.shards.manifest import InputFile, Manifest
from jina_jax.sources.datasets import data_set_extent
from jina_jax.sources.read import matched_files
from jina_jax.system.files import file_state, is_url
from jina_jax.system.hashing import content_key, file_xxh3


def input_files(run: Pipeline) -> list[tuple[InputFile, ...]]:
    """Per source, its files with their hashes, those of local data sets too; of a data set on the
    hub its state as one; none of docstrings.
    """
    files = [_local_files(source) for source in run.config.sources]
    every = list(dict.fromkeys(path for paths in files for path in paths))
    states = {path: file_state(path) for path in every}
    tasks = [
        Task(
            "digest",
            digest_task,
            (path,),
            content_key("digest", path, states[path].size_bytes, states[path].stamp),
        )
        for path in every
    ]
    digests = run.run(tasks, "hash the input", "files")
    found = {
        path: InputFile(path, states[path].size_bytes, xxh3)
        for path, xxh3 in zip(every, digests, strict=True)
    }
    return [
        tuple(found[path] for path in paths) or _on_hub(source)
        for source, paths in zip(run.config.sources, files, strict=True)
    ]


def _local_files(source: SourceConfig) -> Sequence[str]:
    if source.kind in ("hf", "tfds"):
        return data_set_extent(source).files
    return matched_files(source)


def _on_hub(source: SourceConfig) -> tuple[InputFile, ...]:
    if source.kind != "hf":
        return ()
    return (InputFile(source.dataset, 0, data_set_extent(source).stamp),)


def changed_input(config: DataConfig, manifest: Manifest, prepared_ns: int) -> str:
    """What has changed in the input since a preparation, or an empty text.

    Input that is gone is no change: prepared data may outlive it. A file is hashed only when its
    time is later than the manifest's.

    Args:
      config: of the preparation.
      manifest: of its folder.
      prepared_ns: when that was, as the time of the manifest.
    """
    for source, summary in zip(config.sources, manifest.sources, strict=True):
        # The hub is not asked again; and an earlier version did not look at data sets.
        is_local = source.kind != "hf" or Path(source.dataset).expanduser().is_dir()
        if source.kind in ("hf", "tfds") and not (summary.inputs and is_local):
            continue
        try:
            paths = _local_files(source)
        except UserError:
            continue
        before = {file.path: file for file in summary.inputs}
        if new := next((path for path in paths if path not in before), None):
            return f"source {source.name!r} has the new file {new}"
        for path in paths:
            if is_url(path):
                continue
            state, file = file_state(path), before[path]
            stat = Path(path).stat()
            is_later = max(stat.st_mtime_ns, stat.st_ctime_ns) > prepared_ns
            if state.size_bytes != file.size_bytes or (is_later and file_xxh3(path) != file.xxh3):
                return f"{path} has changed"
    return ""


def digest_task(path: str) -> str:
    """Hashes a file's bytes; a URL gives an empty hash, since it would be fetched twice."""
    return "" if is_url(path) else file_xxh3(path)
