"""Checkpoints that a disk has changed: found, set aside, and never trained on."""

import os
import random
import shutil

import jax
import jax.numpy as jnp
import pytest

from jina_jax.checkpoint.checkpoints import Checkpoints, load_checkpoint
from jina_jax.errors import UserError
from jina_jax.system.hashing import SEAL_FILE, damage
from tests.trainer import curve, finish, start


def flip(path, chance=random):
    """Flips one bit of a file, as a bad disk or cable does."""
    content = bytearray(path.read_bytes())
    content[chance.randrange(len(content))] ^= 1 << chance.randrange(8)
    path.write_bytes(content)


def cut(path, chance=random):
    """Takes bytes off the end of a file, as a full disk or a lost machine does."""
    os.truncate(path, chance.randrange(path.stat().st_size))


def largest(folder):
    return max((p for p in folder.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)


@pytest.fixture
def run(folder, uninterrupted, tmp_path):
    """A copy of a run that is done: steps 28, 35 and 40."""
    shutil.copytree(folder / "whole", tmp_path / "run")
    return tmp_path / "run"


@pytest.mark.parametrize("harm", [flip, cut, os.unlink])
def test_harm_to_any_file_of_a_step_is_found(run, harm):
    chance, step = random.Random(0), run / "checkpoints" / "40"
    assert not damage(step)
    files = [p for p in step.rglob("*") if p.is_file() and p.stat().st_size]
    assert len(files) > 10
    for path in files:
        before = path.read_bytes()
        harm(path) if harm is os.unlink else harm(path, chance)
        assert damage(step), f"{harm.__name__} of {path.relative_to(step)} was not noticed"
        path.write_bytes(before)
    assert not damage(step)


@pytest.mark.slow
def test_training_sets_damaged_steps_aside_and_goes_on_from_the_newest_good_one(
    folder, uninterrupted, run
):
    flip(largest(run / "checkpoints" / "40" / "training"))
    cut(largest(run / "checkpoints" / "35" / "params"))
    said = finish(start(folder, str(run)))
    assert said.count("CHECKPOINT DAMAGED") == 2
    assert "has other bytes than were sealed" in said and "was sealed with" in said
    assert "from step 28 of 40" in said
    assert curve(run, "") == uninterrupted
    names = {path.name for path in (run / "checkpoints").iterdir()}
    assert {"40.damaged", "35.damaged", "40", "35"} <= names


def test_readers_use_the_newest_good_step_and_change_nothing(run, capsys):
    flip(largest(run / "checkpoints" / "40" / "params"))
    assert load_checkpoint(run).step == 35
    assert "CHECKPOINT DAMAGED" in capsys.readouterr().err
    assert (run / "checkpoints" / "40").is_dir()


def test_readers_say_so_when_no_step_is_good(run):
    for step in (28, 35, 40):
        (run / "checkpoints" / str(step) / SEAL_FILE).write_text("{}")
    with pytest.raises(UserError, match="no undamaged checkpoint"):
        load_checkpoint(run)


@pytest.mark.slow
def test_what_a_save_left_unfinished_is_never_chosen(folder, uninterrupted, run):
    """A step without its number is no step, whole as its files may be."""
    (run / "checkpoints" / "40").rename(run / "checkpoints" / "saving-40")
    assert load_checkpoint(run).step == 35
    assert "from step 35 of 40" in finish(start(folder, str(run)))
    assert curve(run, "") == uninterrupted
    assert not list((run / "checkpoints").glob("saving-*"))


def test_other_shapes_and_dtypes_are_refused(run):
    checkpoints = Checkpoints(run / "checkpoints")
    at = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    params = load_checkpoint(run).params
    like = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=at), params)
    checkpoints.restore_params(40, like)
    halved = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, jnp.bfloat16, sharding=at), like)
    with pytest.raises(UserError, match=r"embedding_VD\S*: float32\[512, 32\] → bfloat16"):
        checkpoints.restore_params(40, halved)
    longer = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct((x.shape[0] + 1, *x.shape[1:]), x.dtype, sharding=at), like
    )
    with pytest.raises(UserError, match=r"float32\[512, 32\] → float32\[513, 32\]"):
        checkpoints.restore_params(40, longer)
