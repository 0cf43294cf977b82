"""Batches whose loss or gradient is not finite: skipped, counted, written down; too many end the
run.
"""

import dataclasses
import json
import shutil

import jax
import numpy as np
import pytest

from jina_jax.checkpoint.checkpoints import Checkpoints
from jina_jax.config import MeshConfig
from jina_jax.devices.mesh import make_mesh, put
from jina_jax.errors import ExitCode
from jina_jax.model.encoder import init_params
from jina_jax.shards.array_record import ShardWriter, encode_record
from jina_jax.shards.manifest import MANIFEST_FILE, ends_xxh3, load_manifest
from jina_jax.shards.shard_set import ShardSet
from jina_jax.system.hashing import file_sha256
from jina_jax.train.metrics.writer import read_metrics
from jina_jax.train.step import batch_shardings, init_state, make_train_step, state_shardings
from tests.faults.tiny_step import CONFIG, make_batch
from tests.marks import some_slow
from tests.trainer import curve, finish, start


def run_steps(config, batches, devices=1):
    """The states after each of some batches, and whether each was skipped."""
    mesh = make_mesh(MeshConfig(data=devices))
    step = make_train_step(config, mesh)
    params = init_params(config.model, jax.random.key(0))
    state = put(init_state(config, params), state_shardings(config, mesh))
    found = []
    for batch in batches:
        state, metrics = step(state, put(batch, batch_shardings(mesh)))
        found.append((jax.tree.map(np.asarray, state), bool(metrics["skipped"])))
    return found


def leaves(state):
    return jax.tree.leaves((state.params, state.opt_state, state.temperature))


@pytest.mark.parametrize(
    ("value", "devices", "chunk_rows"),
    some_slow([(1e30, 1, 8), (-np.inf, 8, 0)], [(np.inf, 1, 0), (1e30, 1, 8), (-np.inf, 8, 0)]),
)
def test_a_skipped_step_changes_the_step_number_alone(value, devices, chunk_rows):
    """A teacher's score that is infinite, or whose square is, and then a good batch again."""
    config = dataclasses.replace(
        CONFIG, train=dataclasses.replace(CONFIG.train, grad_cache_rows=chunk_rows)
    )
    good, bad, next_good = (make_batch(seed) for seed in range(3))
    bad.teacher_BS[3, 0] = value
    found = run_steps(config, [good, bad, next_good], devices)
    assert [skipped for _, skipped in found] == [False, True, False]
    (before, _), (after, _), (later, _) = found
    assert [int(s.step) for s in (before, after, later)] == [1, 2, 3]
    for one, other, moved in zip(leaves(before), leaves(after), leaves(later)):
        assert one.tobytes() == other.tobytes()
        assert np.isfinite(moved).all()
    assert any((a != b).any() for a, b in zip(leaves(after), leaves(later)))


def poison(data, source, record):
    """Gives the pairs of a source a teacher's scores, one of them infinite, as a broken teacher
    would.
    """
    manifest = json.loads((data / MANIFEST_FILE).read_text())
    entry = next(s for s in manifest["sources"] if s["name"] == source)
    (shard,) = entry["shards"]
    path = data / shard["path"]
    found = ShardSet([path]).read(np.arange(shard["records"]))
    path.unlink()
    writer = ShardWriter(path)
    for i in range(shard["records"]):
        texts = [found.text(i, t) for t in range(2)]
        hashes = [h.tobytes() for h in found.hashes_NSx2[i]]
        writer.write(encode_record(hashes, texts, [np.inf if i == record else 0.5]))
    writer.close()
    shard |= {"sha256": file_sha256(path), "ends_xxh3": ends_xxh3(path)}
    entry["has_scores"] = True
    (data / MANIFEST_FILE).write_text(json.dumps(manifest))


@pytest.mark.slow
def test_a_poisoned_record_is_named_and_the_run_goes_on(folder, tmp_path):
    shutil.copytree(folder / "data", tmp_path / "data")
    poison(tmp_path / "data", "numbers", record=7)
    flags = (f"--data-dir={tmp_path / 'data'}", "--loss.distill-weight=1.0")
    said = finish(start(folder, str(tmp_path / "run"), *flags))
    lines = [json.loads(x) for x in (tmp_path / "run" / "skipped.jsonl").read_text().splitlines()]
    # `numbers` is a quarter of 40 batches of 16, of its 170 records: less than one epoch.
    assert len(lines) == 1 and said.count("STEP SKIPPED") == 1
    (line,) = lines
    assert line["source"] == "numbers" and 7 in line["records"] and len(line["records"]) == 16
    assert line["loss"] is None and line["gradient_norm"] is None
    shards = ShardSet(
        [tmp_path / "data" / s.path for s in load_manifest(tmp_path / "data").sources[1].shards]
    )
    hashes = shards.read(np.array(line["records"])).hashes_NSx2
    assert line["hashes"] == [[text.tobytes().hex() for text in record] for record in hashes]
    metrics = read_metrics(tmp_path / "run" / "metrics.jsonl")
    assert metrics[line["step"] - 1]["loss"] is None
    assert metrics[-1]["skipped_steps"] == 1 and metrics[-1]["loss"] > 0
    assert [m["step"] for m in metrics] == list(range(1, 41))


@pytest.mark.slow
def test_too_many_in_a_row_end_the_run_with_finite_parameters(folder):
    """A learning rate that throws the parameters out of all bounds."""
    flags = ("--optim.learning-rate=1e25", "--optim.warmup-steps=0", "--faults.max-skipped-steps=4")
    for attempt in range(2):  # The same command goes on past those batches, and ends again.
        process = start(folder, "thrown", *flags)
        _, said = process.communicate(timeout=300)
        assert process.returncode == ExitCode.NOT_FINITE, said
        # One more than asked for: a step is judged when the next one runs.
        assert "5 steps in a row had no finite loss or gradient" in said
        assert "lower optim.learning_rate" in said.replace("\n", " ") and "Traceback" not in said
        lines = (folder / "thrown" / "skipped.jsonl").read_text().splitlines()
        steps = [json.loads(line)["step"] for line in lines]
        assert len(steps) >= 4 * (attempt + 1)
        checkpoints = Checkpoints(folder / "thrown" / "checkpoints")
        assert checkpoints.newest_good() == steps[-1] == curve(folder, "thrown")[-1][0]
