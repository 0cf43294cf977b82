import dataclasses
import json

import pytest

from jina_jax.config import DataConfig, SourceConfig
from jina_jax.config.files import changed_since
from jina_jax.errors import UserError
from jina_jax.shards.manifest import (
    FORMAT_VERSION,
    InputFile,
    LengthStats,
    Manifest,
    ScoreHistogram,
    ShardFile,
    SourceSummary,
    StageCounts,
    changed_fields,
    load_manifest,
    prepared_config,
    save_manifest,
)

CONFIG = DataConfig((SourceConfig("s", paths=("a", "b")), SourceConfig("t", paths=("c",))))
HISTOGRAM = ScoreHistogram(-1.0, 1.0, (0, 4), (2, 0))


def manifest(shards=()):
    source = SourceSummary(
        "s", "CC0", "pair", (InputFile("a", 9, "0f"),), 10, {"malformed_json": 1},
        {"duplicate": 2}, (StageCounts("margin", 9, {"margin": 2}, HISTOGRAM),), 6, 1,
        LengthStats(2.5, 2, 3, 4), LengthStats(7.25, 7, 8, 9), None, tuple(shards), None, False,
    )  # fmt: skip
    return Manifest(
        FORMAT_VERSION, prepared_config(CONFIG), {"clean": 1}, "00ff", 8000, {}, {}, (source,), {}
    )


def test_a_manifest_comes_back_as_it_was(tmp_path):
    saved = manifest([ShardFile("train/s-00000.arrayrecord", 6, 100, "abcd", "12")])
    save_manifest(saved, tmp_path)
    assert load_manifest(tmp_path) == saved


def test_without_a_manifest_the_command_is_named(tmp_path):
    with pytest.raises(UserError, match="run `jina-jax prepare` first"):
        load_manifest(tmp_path)


@pytest.mark.parametrize(
    "change",
    [
        lambda v: v.pop("sources"),
        lambda v: v.update(vocab_size="8000"),
        lambda v: v["sources"][0].pop("train"),
        lambda v: v["sources"][0].update(query_tokens=3),
        lambda v: v["sources"][0].update(surprise=1),
        lambda v: v.update(sources=None),
        lambda v: v.pop("format_version"),
    ],
)
def test_a_damaged_manifest_is_named(tmp_path, change):
    save_manifest(manifest(), tmp_path)
    path = tmp_path / "manifest.json"
    values = json.loads(path.read_text())
    change(values)
    path.write_text(json.dumps(values))
    with pytest.raises(UserError, match=r"manifest\.json is damaged"):
        load_manifest(tmp_path)


@pytest.mark.parametrize("text", ["", "{", "[]", "\x00", '"text"'])
def test_what_is_no_manifest_is_named(tmp_path, text):
    (tmp_path / "manifest.json").write_text(text)
    with pytest.raises(UserError, match=r"manifest\.json is damaged"):
        load_manifest(tmp_path)


def test_another_version_is_refused_before_its_fields_are_judged(tmp_path):
    (tmp_path / "manifest.json").write_text('{"format_version": 99}')
    with pytest.raises(UserError, match=f"version 99.*reads {FORMAT_VERSION}"):
        load_manifest(tmp_path)


def test_differences_are_named_by_field_and_weights_are_none():
    sources = (SourceConfig("s", paths=("a",)), SourceConfig("t", paths=("c",), weight=3.0))
    changed = dataclasses.replace(CONFIG, seed=1, sources=sources)
    assert changed_fields(manifest(), CONFIG) == []
    assert changed_fields(manifest(), changed) == [
        "seed: 0 → 1",
        "sources.0.paths: ['a', 'b'] → ['a']",
    ]


OUTSIDE = ["/etc/passwd", "../outside", "train/../../outside", ""]


@pytest.mark.parametrize("path", OUTSIDE)
def test_shards_of_a_foreign_manifest_lie_in_its_folder(tmp_path, path):
    save_manifest(manifest([ShardFile(path, 6, 100, "abcd", "12")]), tmp_path)
    with pytest.raises(UserError, match="is no path within"):
        load_manifest(tmp_path)


@pytest.mark.parametrize("path", OUTSIDE)
def test_so_do_the_held_out_pairs(tmp_path, path):
    save_manifest(manifest(), tmp_path)
    values = json.loads((tmp_path / "manifest.json").read_text())
    values["sources"][0]["eval_path"] = path
    (tmp_path / "manifest.json").write_text(json.dumps(values))
    with pytest.raises(UserError, match="is no path within"):
        load_manifest(tmp_path)


def test_a_shard_that_is_a_link_out_of_the_folder_is_refused(tmp_path):
    outside, folder = tmp_path / "outside", tmp_path / "data"
    (folder / "train").mkdir(parents=True)
    outside.write_bytes(b"abc")
    (folder / "train" / "a").symlink_to(outside)
    save_manifest(manifest([ShardFile("train/a", 6, 3, "abcd", "12")]), folder)
    with pytest.raises(UserError, match="leads out of"):
        load_manifest(folder)
    # The whole folder may lie elsewhere.
    (folder / "train" / "a").unlink()
    outside.rename(folder / "train" / "a")
    (tmp_path / "link").symlink_to(folder)
    assert load_manifest(tmp_path / "link").sources[0].shards[0].path == "train/a"


def test_a_key_that_is_there_twice_is_no_manifest(tmp_path):
    save_manifest(manifest(), tmp_path)
    path = tmp_path / "manifest.json"
    path.write_text(path.read_text().replace("{", '{"vocab_size": 7,', 1))
    with pytest.raises(UserError, match="'vocab_size' is there twice"):
        load_manifest(tmp_path)


@pytest.mark.parametrize("negative", ["", "neg"])
def test_what_a_configuration_leaves_open_is_as_it_was_prepared(negative):
    names = {"query_field": "q", "positive_field": "p", "negative_field": negative}
    found, open_ = (
        {"sources": [fields | {"extractor": ""}], "negatives_per_record": most}
        for fields, most in ((names, 1), (dict.fromkeys(names, ""), None))
    )
    assert changed_since(found, open_, {}) == []
    # As many negatives as there were are not one.
    assert changed_since(open_, found, {}) == ["negatives_per_record: None → 1"]
    assert changed_since(open_, found | {"negatives_per_record": None}, {}) == []
    other = {"sources": [names | {"query_field": "a", "extractor": ""}], "negatives_per_record": 2}
    assert len(changed_since(found, other, {})) == 2
