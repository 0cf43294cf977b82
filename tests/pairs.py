"""Small sources that tests of preparation share."""

import contextlib
import json

import pytest

from jina_jax.config import (
    DataConfig,
    DecontaminationConfig,
    EvaluationSet,
    LanguageConfig,
    LengthConfig,
    NearDuplicateConfig,
    SourceConfig,
    TokenizerConfig,
)
from jina_jax.prepare.run import prepare

VOCAB = 50


def number_name(i):
    digits = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
    return " ".join(digits[int(d)] for d in str(i))


def pair(i):
    return {"query": f"What is the number {number_name(i)}?", "positive": f"It is {i}, of course."}


def triplet(i):
    return pair(i) | {"negative": f"It is {i + 1}, perhaps."}


def write(path, records):
    path.write_text("".join((r if isinstance(r, str) else json.dumps(r)) + "\n" for r in records))
    return path


def config(*files, **more):
    """A source a file; one whose name begins with `triplets` has negatives."""
    sources = tuple(
        SourceConfig(
            p.stem, paths=(str(p),), licence="CC0",
            negative_field="negative" if p.stem.startswith("triplets") else "",
        )
        for p in files
    )  # fmt: skip
    values = {"eval_pairs": 20, "records_per_shard": 100, "max_bad_share": 0.5} | more
    return DataConfig(sources, TokenizerConfig("train", VOCAB), **values)


def filtered(*files, **more):
    """`config` with every filter that needs no model of this size, and one evaluation set."""
    held = write(files[0].with_name("dev.txt"), ["What is the number one two three four?"])
    return config(
        *files,
        lengths=LengthConfig(max_words=60),
        near_duplicates=NearDuplicateConfig(enabled=True, threshold=0.9),
        language=LanguageConfig(enabled=True),
        decontamination=DecontaminationConfig((EvaluationSet("dev", (str(held),), "text", ()),)),
        **more,
    )


def run(config, out, scorers=None, **more):
    """Prepares; with other filters in two halves than the configured ones where they are given."""
    with pytest.MonkeyPatch.context() as patch:
        if scorers is not None:
            patch.setattr("jina_jax.prepare.run.configured_scorers", lambda _: scorers)
        return prepare(config, out, progress=False, **more)


def markers(work):
    """Markers of a work store's finished tasks, and when they were written."""
    found = {}
    for path in (work / "done").rglob("*.json"):
        with contextlib.suppress(FileNotFoundError):  # It is removed just now.
            found[path.relative_to(work / "done").as_posix()] = path.stat().st_mtime_ns
    return found


def files(folder):
    return {p.relative_to(folder): p.read_bytes() for p in folder.rglob("*") if p.is_file()}
