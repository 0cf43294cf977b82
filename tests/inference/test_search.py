from pathlib import Path
from typing import ClassVar

import jax
import numpy as np
import pytest

from jina_jax.cli.main import main
from jina_jax.config import MeshConfig
from jina_jax.devices.mesh import make_mesh
from jina_jax.inference import search
from jina_jax.inference.search import stream_top_k, top_k
from tests.random_texts import texts
from tests.vectors import numbered


def test_search_at_a_precision_finds_what_rounded_embeddings_find(exported, tmp_path, capsys):
    passages = texts(30, seed=5)
    (tmp_path / "passages.txt").write_text("\n".join(passages))
    found = []
    for precision in ("float32", "binary"):
        arguments = [str(exported), str(tmp_path / "passages.txt"), "the deep sea"]
        assert main(["search", *arguments, "--precision", precision]) == 0
        lines = capsys.readouterr().out.splitlines()[1:]
        found.append([float(line.split()[0]) for line in lines])
    assert len(found[0]) == len(found[1]) == 5
    # Of 32 signs so many agree: every cosine is a sixteenth.
    sixteenths = np.array(found[1]) * 16
    np.testing.assert_allclose(sixteenths, np.round(sixteenths), atol=0.01)
    assert np.abs(np.array(found[0]) * 16 - np.round(np.array(found[0]) * 16)).max() > 0.05


def test_by_hand_and_earlier_of_equals_first():
    corpus = np.array([[1, 0], [0, 1], [1, 0], [0.6, 0.8]], np.float32)
    score, index = top_k(np.array([[1, 0]], np.float32), corpus, 3)
    assert index.tolist() == [[0, 2, 3]]
    assert score[0] == pytest.approx([1, 1, 0.6], abs=1e-6)


@pytest.mark.parametrize("devices", [1, 8])
@pytest.mark.parametrize(("query_block", "block"), [(4, 7), (11, 64), (3, 1000)])
def test_equals_a_sort_whatever_the_blocks_and_devices(devices, query_block, block):
    rng = np.random.default_rng(0)
    # Whole numbers, so that products are exact and equal scores are common.
    q, corpus = (rng.integers(-3, 4, (n, 8)).astype(np.float32) for n in (11, 301))
    score, index = top_k(
        q,
        corpus,
        20,
        query_block=query_block,
        block=block,
        mesh=make_mesh(MeshConfig(data=devices)),
    )
    exact = q @ corpus.T
    expected = np.argsort(-exact, axis=1, kind="stable")[:, :20]
    assert np.array_equal(index, expected)
    assert np.array_equal(score, np.take_along_axis(exact, expected, axis=1))


@pytest.mark.parametrize("devices", [1, 8])
def test_equal_scores_have_the_order_that_is_given(devices):
    rng = np.random.default_rng(2)
    q, corpus = (rng.integers(-1, 2, (n, 4)).astype(np.float32) for n in (11, 301))
    order = rng.permutation(len(corpus)).astype(np.int32)
    mesh = make_mesh(MeshConfig(data=devices))
    for block in (3, 7, 1000):
        parts = np.split(corpus, [100, 101, 290])
        score, index = stream_top_k(q, numbered(parts), 20, block=block, mesh=mesh, order=order)
        exact = q @ corpus.T
        expected = order[np.argsort(-exact[:, order], axis=1, kind="stable")[:, :20]]
        assert np.array_equal(index, expected)
        assert np.array_equal(score, np.take_along_axis(exact, expected, axis=1))
    # More are equal at the cut-off than are kept, so that the order chooses among them.
    assert np.all(np.sum(exact >= score[:, -1:], axis=1) > 20)


@pytest.mark.parametrize("devices", [1, 8])
def test_finds_the_same_as_a_sort_of_cosines(devices):
    rng = np.random.default_rng(1)
    q, corpus = (rng.normal(size=(n, 48)).astype(np.float32) for n in (40, 2500))
    corpus[[700, 1900]] = corpus[3]  # Equal passages, in other blocks and on other devices.
    q[0] = corpus[3]
    q, corpus = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (q, corpus))
    _, index = top_k(
        q, corpus, 30, query_block=16, block=100, mesh=make_mesh(MeshConfig(data=devices))
    )
    exact = q.astype(np.float64) @ corpus.astype(np.float64).T
    assert np.array_equal(index, np.argsort(-exact, axis=1, kind="stable")[:, :30])
    assert index[0, :3].tolist() == [3, 700, 1900]


@pytest.mark.parametrize("devices", [1, 8])
def test_the_padding_of_the_last_block_is_never_found(devices):
    corpus = -1 - np.arange(19, dtype=np.float32)[:, None]
    score, index = top_k(
        np.ones((1, 1), np.float32), corpus, 30, block=4, mesh=make_mesh(MeshConfig(data=devices))
    )
    assert index[0].tolist() == list(range(19))
    assert np.array_equal(score, corpus.T)


def test_fewer_passages_than_k_and_no_query():
    score, index = top_k(np.ones((2, 4), np.float32), np.ones((3, 4), np.float32), 10)
    assert index.tolist() == [[0, 1, 2]] * 2
    assert score.shape == (2, 3)
    score, index = top_k(np.ones((0, 4), np.float32), np.ones((3, 4), np.float32), 2)
    assert score.shape == index.shape == (0, 2)


def anonymous_bytes():
    status = Path("/proc/self/status").read_text()
    return 1024 * int(status.split("RssAnon:")[1].split()[0])


class Watched(np.memmap):
    """A corpus that notes, whenever a part of it is read, how much memory is held."""

    notes: ClassVar[list[tuple[int, int]]] = []

    def __getitem__(self, part):
        if isinstance(part, slice):
            self.notes.append((sum(x.nbytes for x in jax.live_arrays()), anonymous_bytes()))
        return super().__getitem__(part)


def test_memory_is_bounded_by_the_block_and_not_the_corpus(tmp_path):
    # Many queries, so that comparing takes longer than reading, which would run ahead.
    queries, rows, width, block, k = 2048, 1 << 17, 256, 256, 8
    corpus = np.memmap(tmp_path / "corpus", np.float32, "w+", shape=(rows, width))  # 128 MiB
    rng = np.random.default_rng(0)
    places = np.sort(rng.choice(rows, k, replace=False))
    corpus[places, 0] = 1 + np.arange(k)
    corpus.flush()
    watched = Watched(tmp_path / "corpus", np.float32, "r", shape=(rows, width))
    before = sum(x.nbytes for x in jax.live_arrays())
    q = np.zeros((queries, width), np.float32)
    q[:, 0] = 1
    _, index = top_k(q, watched, k, query_block=queries, block=block)
    assert np.array_equal(index, np.tile(places[::-1], (queries, 1)))
    on_devices, in_process = zip(*Watched.notes)
    assert len(on_devices) == rows // (8 * block)
    block_bytes = 8 * block * width * 4
    queries_and_best = 8 * queries * (width * 4 + 3 * k * 8)
    assert max(on_devices) - before <= 2 * block_bytes + queries_and_best
    # After the first blocks, whose programs are compiled, next to nothing is added.
    assert max(in_process[4:]) - in_process[4] < corpus.nbytes / 2
    tile_bytes = queries * (block + k) * 4
    compiled = search._merger(make_mesh()).lower(
        jax.ShapeDtypeStruct((8, queries, k), np.float32),
        jax.ShapeDtypeStruct((8, queries, k), np.int32),
        jax.ShapeDtypeStruct((queries, width), np.float32),
        jax.ShapeDtypeStruct((8 * block, width), np.float32),
        jax.ShapeDtypeStruct((8 * block,), np.int32),
    ).compile()  # fmt: skip
    assert compiled.memory_analysis().temp_size_in_bytes < 8 * tile_bytes
