"""Data sets of Hugging Face and TFDS are read in parts, and seen to change."""

import dataclasses
import subprocess
import sys

import pyarrow.parquet as pq
import pytest

from jina_jax.config import SourceConfig, TokenizerConfig
from jina_jax.errors import UserError
from jina_jax.prepare import ingest
from jina_jax.prepare.ingest import plan_blocks, undivided
from jina_jax.shards.manifest import LEDGER
from jina_jax.sources.chunks import flattened
from jina_jax.sources.read import read_all, read_source
from tests.pairs import config, files, pair, run, write

datasets = pytest.importorskip("datasets", reason="needs jina-jax[hf]")


def rows(first, end):
    """Some of which cannot be read."""
    found = [pair(i) for i in range(first, end)]
    return [row | {"positive": None} if i % 40 == 7 else row for i, row in enumerate(found)]


def saved(folder, count=300):
    datasets.Dataset.from_list(rows(0, count)).save_to_disk(folder)
    return folder


def of_files(folder, count=300):
    folder.mkdir(exist_ok=True)
    for part in range(5):
        table = datasets.Dataset.from_list(rows(part * count // 5, (part + 1) * count // 5))
        table.to_parquet(folder / f"train-{part:05d}.parquet")
    return folder


@pytest.fixture(scope="module")
def tfds_folder(tmp_path_factory):
    pytest.importorskip("tensorflow_datasets", reason="needs jina-jax[tfds]")
    from tests.sources.test_tfds_source import BUILDER

    folder = tmp_path_factory.mktemp("tfds")
    subprocess.run([sys.executable, "-c", BUILDER, str(folder)], check=True, capture_output=True)
    return folder


def source_of(kind, folder):
    if kind == "tfds":
        return SourceConfig(
            "s", "tfds", (str(folder),), "tiny_pairs", "plain", query_field="question",
            positive_field="answer",
        )  # fmt: skip
    return SourceConfig(
        "s", "hf", dataset=str(folder), query_field="query", positive_field="positive"
    )


@pytest.fixture(params=["saved", "files", "tfds"])
def source(request, tmp_path):
    if request.param == "tfds":
        return source_of("tfds", request.getfixturevalue("tfds_folder"))
    return source_of("hf", {"saved": saved, "files": of_files}[request.param](tmp_path / "data"))


def test_the_blocks_of_a_data_set_are_its_records(source, monkeypatch):
    monkeypatch.setattr(ingest, "BLOCK_BYTES", 1024)
    blocks = plan_blocks([source])
    assert len(blocks) >= 5
    got, before = [], 0
    for block in blocks:
        last = 0
        for chunk in read_all(source, block.start, block.end):
            for record in flattened(chunk):
                origin = record.origin._replace(row=record.origin.row + before)
                got.append(record._replace(origin=origin))
            last = chunk.last_row
        before += last
    assert got == list(read_source(source))
    assert len(plan_blocks([dataclasses.replace(source, limit=10)])) == 1


def test_how_a_data_set_is_cut_changes_no_byte(source, tmp_path, monkeypatch):
    settings = dataclasses.replace(
        config(), sources=(source,), tokenizer=TokenizerConfig("train", 40)
    )
    run(settings, tmp_path / "whole")
    lost = pq.read_table(tmp_path / "whole" / LEDGER).to_pylist()
    assert len(lost) > 0 and max(row["row"] for row in lost) > 100
    monkeypatch.setattr(ingest, "BLOCK_BYTES", 1024)
    run(settings, tmp_path / "cut")
    assert files(tmp_path / "cut") == files(tmp_path / "whole")


@pytest.mark.parametrize("make", [saved, of_files])
def test_a_data_set_that_changed_is_another_input(make, tmp_path):
    folder = make(tmp_path / "data")
    settings = dataclasses.replace(config(), sources=(source_of("hf", folder),))
    stamps = [block.stamp for block in plan_blocks(settings.sources)]
    manifest = run(settings, tmp_path / "out")
    assert manifest.sources[0].inputs and manifest.sources[0].inputs[0].xxh3
    assert run(settings, tmp_path / "out") == manifest
    # Another one of as many rows under the same name.
    table = datasets.Dataset.from_list([pair(i) for i in range(1000, 1060)])
    if make is saved:
        table.save_to_disk(folder)
    else:
        table.to_parquet(folder / "train-00003.parquet")
    assert [block.stamp for block in plan_blocks(settings.sources)] != stamps
    with pytest.raises(UserError, match=r"prepared from other input: .*has changed"):
        run(settings, tmp_path / "out")


def test_what_one_task_has_to_read_is_told_with_what_helps(tmp_path, monkeypatch):
    monkeypatch.setattr(ingest, "_UNDIVIDED_BYTES", 50)
    (tmp_path / "packed.jsonl.gz").write_bytes(b"x" * 100)
    plain = write(tmp_path / "plain.jsonl", [pair(i) for i in range(9)])
    table = write(tmp_path / "table.csv", ["query,positive", *["a,b"] * 20])
    sources = [
        SourceConfig("packed", paths=(str(tmp_path / "packed.jsonl.gz"),)),
        SourceConfig("plain", paths=(str(plain),)),
        SourceConfig("first", paths=(str(plain),), limit=5),
        SourceConfig("table", paths=(str(table),)),
    ]
    monkeypatch.setattr(ingest, "BLOCK_BYTES", 40)
    lines = list(undivided(sources, plan_blocks(sources)))
    assert len(lines) == 3
    assert "packed.jsonl.gz on one core" in lines[0] and "pack it as several files" in lines[0]
    assert "'first'" in lines[1] and "limit ends" in lines[1]
    assert "'table'" in lines[2] and "or JSONL" in lines[2]
