"""Damage to a prepared folder: real files, cut and flipped."""

import json
import random
import shutil

import numpy as np
import pytest

from jina_jax.errors import UserError
from jina_jax.shards.array_record import ShardWriter, encode_record
from jina_jax.shards.manifest import ends_xxh3, load_manifest
from jina_jax.shards.shard_set import ShardSet
from jina_jax.shards.verify import data_problems, verify_shards
from tests.pairs import config, pair, run, write


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    source = write(folder / "a.jsonl", [pair(i) for i in range(260)])
    run(config(source), folder / "data")
    return folder / "data"


@pytest.fixture
def prepared(whole, tmp_path):
    return shutil.copytree(whole, tmp_path / "data")


def shard_paths(folder):
    return [folder / s.path for source in load_manifest(folder).sources for s in source.shards]


def flip(path, offset, bit=0):
    content = bytearray(path.read_bytes())
    content[offset] ^= 1 << bit
    path.write_bytes(content)


def test_a_whole_folder_passes(prepared):
    assert list(data_problems(load_manifest(prepared), prepared, full=True)) == []


def test_a_shard_cut_grown_gone_or_another_is_found_at_the_start(prepared):
    first, second, third = shard_paths(prepared)
    manifest = load_manifest(prepared)
    content = first.read_bytes()
    first.write_bytes(content[:-1])
    with pytest.raises(UserError, match=rf"shard {first} has .* bytes instead of"):
        verify_shards(manifest, prepared)
    first.write_bytes(content + b"\0")
    with pytest.raises(UserError, match=rf"shard {first} has .* bytes instead of"):
        verify_shards(manifest, prepared)
    first.unlink()
    with pytest.raises(UserError, match=rf"shard {first} is missing"):
        verify_shards(manifest, prepared)
    # Shards are padded: another one of the same size takes its place.
    assert len(second.read_bytes()) == len(content)
    shutil.copy(second, first)
    with pytest.raises(UserError, match=rf"shard {first} is another one"):
        verify_shards(manifest, prepared)
    third.unlink()
    problems = list(data_problems(manifest, prepared))
    assert len(problems) == 2 and str(third) in problems[1]


def test_a_bit_in_the_middle_is_found_by_hashing_all(tmp_path):
    path = tmp_path / "a"
    path.write_bytes(random.Random(0).randbytes(300_000))
    before = ends_xxh3(path)
    flip(path, 150_000)
    assert ends_xxh3(path) == before
    for offset in (0, 65_535, 300_000 - 65_536, 299_999):
        flip(path, offset)
        assert ends_xxh3(path) != before
        flip(path, offset)


def test_the_tokenizer_is_the_one_of_the_shards(prepared):
    path = prepared / "tokenizer" / "tokenizer.json"
    path.write_text(path.read_text() + " ")
    with pytest.raises(UserError, match="not the one that the shards were made with"):
        verify_shards(load_manifest(prepared), prepared)
    path.unlink()
    with pytest.raises(UserError, match=r"tokenizer\.json is missing"):
        verify_shards(load_manifest(prepared), prepared)


@pytest.fixture(scope="module")
def shard(tmp_path_factory):
    """3,000 records of random ids, and what they hold."""
    path, rng = tmp_path_factory.mktemp("shard") / "a.shard", random.Random(0)
    with ShardWriter(path) as writer:
        for i in range(3000):
            ids = [[rng.randrange(65536) for _ in range(rng.randrange(1, 30))] for _ in range(2)]
            writer.write(encode_record([i.to_bytes(16, "little")] * 2, ids))
    return path, ShardSet([path]).read(range(3000))


DAMAGE = {
    "a flipped bit": lambda data, rng, end: flip_in(data, rng.randrange(end), rng),
    "a lost sector": lambda data, rng, end: lose(data, rng.randrange(end // 512) * 512),
    "two sectors swapped": lambda data, rng, end: swap(data, rng, end // 512),
    "bytes put in": lambda data, rng, end: data.insert(rng.randrange(end), rng.randrange(256)),
    "a cut": lambda data, rng, end: data.__delitem__(slice(rng.randrange(end), None)),
    "garbage": lambda data, rng, end: data.__setitem__(
        slice((at := rng.randrange(end)), at + 40), rng.randbytes(40)
    ),
}


def flip_in(data, at, rng):
    data[at] ^= 1 << rng.randrange(8)


def lose(data, at):
    data[at : at + 512] = bytes(512)


def swap(data, rng, sectors):
    a, b = (rng.randrange(sectors) * 512 for _ in range(2))
    data[a : a + 512], data[b : b + 512] = data[b : b + 512], data[a : a + 512]


@pytest.mark.parametrize("kind", DAMAGE)
def test_no_damage_to_a_shard_ever_changes_a_record(shard, kind, tmp_path):
    path, expected = shard
    rng, good, found = random.Random(kind), path.read_bytes(), 0
    end = len(good.rstrip(b"\0"))
    for _ in range(25):
        data = bytearray(good)
        DAMAGE[kind](data, rng, end)
        (tmp_path / "a").write_bytes(data)
        try:
            got = ShardSet([tmp_path / "a"]).read(range(3000))
        except (UserError, AssertionError):  # The latter where the index lost records.
            found += 1
            continue
        # Damage to what pads the file is none.
        np.testing.assert_array_equal(got.ids_T, expected.ids_T)
        np.testing.assert_array_equal(got.hashes_NSx2, expected.hashes_NSx2)
    assert found >= 20


def test_the_damaged_record_is_named(shard, tmp_path):
    path, expected = shard
    data = path.read_bytes()
    needle = (2500).to_bytes(16, "little") * 2
    (tmp_path / "a").write_bytes(data)
    flip(tmp_path / "a", data.index(needle))
    shards = ShardSet([path, tmp_path / "a"])
    # Its chunk of 16 records is lost, all others are read.
    with pytest.raises(UserError, match=r"/a: record 2500 is damaged .*doctor --full"):
        shards.read([3000, 5500, 7])
    got = shards.read([3000, 3000 + 2450, 3000 + 2550])
    assert got.text(1, 0).tolist() == expected.text(2450, 0).tolist()


@pytest.mark.parametrize("workers", [0, 2])
def test_training_never_sees_a_damaged_shard(prepared, tmp_path, workers, capfd):
    """The whole command, with a bit flipped where only reading finds it."""
    from jina_jax.cli.main import main

    paths = shard_paths(prepared)
    data = paths[0].read_bytes()
    # So small a shard is hashed whole at the start; as if it were larger:
    flip(paths[0], data.index(b"\x02\x00"))
    values = json.loads((prepared / "manifest.json").read_text())
    values["sources"][0]["shards"][0]["ends_xxh3"] = ends_xxh3(paths[0])
    (prepared / "manifest.json").write_text(json.dumps(values))
    file = tmp_path / "config.py"
    source = values["config"]["sources"][0]["paths"][0]
    file.write_text(TRAIN.format(folder=str(tmp_path), data=str(prepared), source=source))
    assert main(["train", str(file), f"--feed.workers={workers}"]) == 2
    err = capfd.readouterr().err
    assert f"shard {paths[0]}: record " in err and "is damaged" in err
    assert "Traceback" not in err.splitlines()[-1]


TRAIN = """
from pathlib import Path
from jina_jax.config import FeedConfig, OptimConfig, RunConfig, T5Config, TrainConfig
from tests.pairs import config

def get_config():
    return RunConfig(
        "a", workdir="{folder}/run", data_dir="{data}", data=config(Path("{source}")),
        feed=FeedConfig(16, 24, 24, 24, 4),
        model=T5Config(vocab_size=64, d_model=16, d_kv=4, d_ff=16, num_layers=1, num_heads=2),
        optim=OptimConfig(warmup_steps=1), train=TrainConfig(num_steps=60, log_every_steps=1),
    )
"""
