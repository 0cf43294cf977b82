"""Steps that are compiled ahead, and kept for the next start."""

import time

import jax
import pytest

from jina_jax.config import MeshConfig
from jina_jax.devices.mesh import make_mesh
from jina_jax.errors import OutOfMemory
from jina_jax.feed.batch import BatchFields, RecordKind
from jina_jax.train import loop, step
from jina_jax.train.step import CompiledStep, batch_shapes
from tests.train.test_step import SMALL


def until(what):
    end = time.monotonic() + 300
    while not what():
        assert time.monotonic() < end
        time.sleep(0.05)


PAIRS, TRIPLETS, SCORED = RecordKind(2), RecordKind(3), RecordKind(2, is_scored=True)


@pytest.mark.slow
def test_what_is_planned_is_compiled_without_being_asked_for():
    fields = BatchFields(labels=True, own_only=True, guide_dims=8)
    planned = {PAIRS: (16,), TRIPLETS: (24,)}
    with CompiledStep(SMALL, make_mesh(MeshConfig(1)), planned, fields) as compiled:
        until(lambda: all(program.done() for program in compiled._programs.values()))
        assert len(compiled._programs) == 2
        # The last two are such as no plan had: of other rows, and with scores.
        for rows, kind in ((16, PAIRS), (24, TRIPLETS), (40, PAIRS), (16, SCORED)):
            batch = batch_shapes(SMALL, rows, kind, fields)
            assert not compiled.is_ready(batch)
            compiled.make_ready(batch)
            assert compiled.is_ready(batch)
        assert len(compiled._programs) == 4
        assert not compiled.is_ready(batch_shapes(SMALL, 16, PAIRS))


def test_one_that_does_not_fit_says_so_before_it_is_needed(monkeypatch):
    monkeypatch.setattr(step, "local_memory_bytes", lambda _: 1000)
    never = batch_shapes(SMALL, 40, PAIRS)
    with (
        CompiledStep(SMALL, make_mesh(MeshConfig(1)), {PAIRS: (16,)}) as compiled,
        pytest.raises(OutOfMemory, match="a step of 16 rows of 16 tokens needs"),
    ):
        until(lambda: compiled.is_ready(never))


def test_programs_are_kept_below_the_run_unless_a_folder_is_named(monkeypatch, tmp_path):
    before, folder = jax.config.jax_compilation_cache_dir, tmp_path / "compiled"
    loop._keep_programs(folder)
    assert jax.config.jax_compilation_cache_dir == before
    try:
        jax.config.update("jax_compilation_cache_dir", None)
        loop._keep_programs(folder)
        assert jax.config.jax_compilation_cache_dir == str(folder)
    finally:
        jax.config.update("jax_compilation_cache_dir", before)
