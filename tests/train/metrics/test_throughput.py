import dataclasses

import numpy as np
import pytest

from jina_jax.config import FeedConfig, MeshConfig, RunConfig, T5Config
from jina_jax.devices.accelerators import accelerator
from jina_jax.devices.mesh import make_mesh
from jina_jax.feed.batch import Batch, PackedBatch
from jina_jax.model.flops import Work
from jina_jax.train.metrics import throughput
from jina_jax.train.metrics.throughput import Throughput, text_work

SEGMENTS = np.array([[1, 1, 1, 2, 2, 0], [1, 1, 1, 1, 1, 0], [0] * 6], np.int32)
MODEL = T5Config(d_model=4, d_kv=3, d_ff=5, num_layers=1, num_heads=2)
CONFIG = RunConfig(name="x", feed=FeedConfig(global_batch_size=2), model=MODEL)


@pytest.fixture
def clock(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(throughput.time, "perf_counter", lambda: now[0])
    return now


def batch(parts=1.0):
    pairs, hashes = np.zeros((2, 2), np.int32), np.zeros((2, 2, 4), np.uint32)
    arrays = PackedBatch(SEGMENTS, SEGMENTS, pairs, hashes, np.zeros((2, 1), np.float32))
    return Batch(0, 0, np.arange(2), arrays, parts, cut_tokens=5)


def test_texts_are_counted_within_their_rows():
    assert text_work(SEGMENTS) == Work(10, 3**2 + 2**2 + 5**2)
    assert text_work(np.zeros((2, 4), np.int32)) == Work(0, 0)


def test_rates_by_hand(clock):
    rates = Throughput(CONFIG, make_mesh(MeshConfig(data=4)))
    rates.add(batch())
    rates.add(batch())
    rates.data_wait_s = 1.0
    clock[0] += 4.0
    values = rates.read()
    # Weights: 4 products of 2*4*6 and 2 of 2*4*5 a token; attention 2*2*6 a position; the loss
    # 2*2*2*4; three times each in training.
    per_token, per_attended, loss = 4 * 48 + 2 * 40, 24, 32
    computed = 3 * (18 * per_token + 3 * 36 * per_attended + loss)
    of_texts = 3 * (10 * per_token + 38 * per_attended + loss)
    assert values == {
        "pairs_per_s": 1.0,
        "real_tokens_per_s": 5.0,
        "padding_share": pytest.approx(1 - 10 / 18),
        "cut_share": pytest.approx(5 / 15),
        "step_time_s": 2.0,
        "data_wait_s": 0.5,
        "tflops_per_s_per_device": pytest.approx(2 * computed / 4 / 4 / 1e12),
        "text_tflops_per_s_per_device": pytest.approx(2 * of_texts / 4 / 4 / 1e12),
    }


def test_share_of_the_peak_where_it_is_known(clock, monkeypatch):
    monkeypatch.setattr(throughput, "accelerator", lambda _: accelerator("NVIDIA H200"))
    model = dataclasses.replace(MODEL, compute_dtype="bfloat16")
    rates = Throughput(dataclasses.replace(CONFIG, model=model), make_mesh(MeshConfig(data=4)))
    rates.add(batch())
    clock[0] += 0.5
    values = rates.read()
    assert values["mfu"] == pytest.approx(values["tflops_per_s_per_device"] / 989.4)
    assert values["text_mfu"] == pytest.approx(values["text_tflops_per_s_per_device"] / 989.4)
    assert 0 < values["text_mfu"] < values["mfu"]


def test_reading_starts_anew(clock):
    rates = Throughput(CONFIG, make_mesh(MeshConfig(data=1)))
    rates.add(batch())
    clock[0] += 1.0
    first = rates.read()
    rates.add(batch())
    clock[0] += 2.0
    assert rates.read()["step_time_s"] == 2 * first["step_time_s"]
