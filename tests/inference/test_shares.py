"""Texts that processes share: parts and rounds, and what real processes find together."""

import json
import os
import signal
import subprocess
import sys
import time
from itertools import chain

import jax
import numpy as np
import pytest

from jina_jax.config import TokenizerConfig
from jina_jax.export.huggingface import export_huggingface
from jina_jax.inference.packed_encoder import _by_part
from jina_jax.inference.shares import PART_TEXTS, Share, rounds
from jina_jax.model.encoder import init_params
from jina_jax.text.tokenizer import build_tokenizer
from tests.devices.test_processes import free_port
from tests.devices.test_processes import together as together_at
from tests.inference.shared_work import CONFIG, TEXTS
from tests.random_texts import texts
from tests.trainer import ROOT


@pytest.mark.parametrize("processes", [1, 2, 3, 8])
@pytest.mark.parametrize("count", [0, 1, PART_TEXTS, 1000, 2 * 512 * 3, 5000])
def test_every_text_is_one_processes_own(processes, count):
    given = [str(i) for i in range(count)]
    of_all = [list(rounds(iter(given), Share(rank, processes), 512)) for rank in range(processes)]
    assert len({len(found) for found in of_all}) == 1
    for together in zip(*of_all, strict=True):
        assert len({one.end for one in together}) == 1
        assert max(len(one.texts) for one in together) <= 512
    own = [one for found in of_all for one in found]
    assert all(one.texts == [given[i] for i in one.index_N] for one in own)
    assert sorted(chain.from_iterable(one.index_N.tolist() for one in own)) == list(range(count))
    # Whole parts go around, so that none has more than a part above another.
    sizes = [sum(len(one.texts) for one in found) for found in of_all]
    assert max(sizes) - min(sizes) <= PART_TEXTS


def test_rows_of_a_part_do_not_depend_on_the_other_parts():
    length_N = np.random.default_rng(0).integers(1, 60, 3 * PART_TEXTS)
    of_part_N = np.arange(len(length_N)) // PART_TEXTS
    both = _by_part(length_N, of_part_N, 64, 16)
    rows = 0
    for part in range(3):
        chosen = of_part_N == part
        alone = _by_part(length_N[chosen], of_part_N[chosen], 64, 16)
        assert np.array_equal(both.row_N[chosen], alone.row_N + rows)
        assert np.array_equal(both.slot_N[chosen], alone.slot_N)
        assert np.array_equal(both.start_N[chosen], alone.start_N)
        rows += alone.num_rows
    assert both.num_rows == rows


@pytest.fixture(scope="module")
def together(tmp_path_factory):
    """What 1, 2 and 4 processes found, each with a device."""
    folder = tmp_path_factory.mktemp("shares")
    (folder / "tokenizer").mkdir()
    build_tokenizer(TokenizerConfig("train", vocab_size=100), iter(TEXTS), folder / "tokenizer")
    params = init_params(CONFIG, jax.random.key(0))
    export_huggingface(
        params, CONFIG, folder / "tokenizer", folder / "export", max_tokens=48, card="# A card\n"
    )
    lines = [json.dumps({"text": text or "none"}) + "\n" for text in TEXTS]
    (folder / "in.jsonl").write_text("".join(lines))
    environment = os.environ | {
        "PYTHONPATH": str(ROOT), "XLA_FLAGS": "--xla_force_host_platform_device_count=1",
    }  # fmt: skip
    found = {}
    for count in (1, 2, 4):
        (folder / str(count)).mkdir()
        port = str(free_port())
        run = [sys.executable, "-m", "tests.inference.shared_work", port]
        processes = [
            subprocess.Popen(
                [*run, str(rank), str(count), str(folder)],
                env=environment, stderr=subprocess.PIPE, text=True,
            )
            for rank in range(count)
        ]  # fmt: skip
        for process in processes:
            _, errors = process.communicate(timeout=300)
            assert process.returncode == 0, errors
        found[count] = [
            (dict(np.load(folder / str(count) / f"{rank}.npz")),
             json.loads((folder / str(count) / f"{rank}.json").read_text()))
            for rank in range(count)
        ]  # fmt: skip
    return folder, found


@pytest.mark.slow
def test_all_processes_find_the_same_as_one_does(together):
    folder, found = together
    ((expected, scores),) = found[1]
    for count, of_all in found.items():
        for values, measured in of_all:
            for name in values.keys() - {"own", "own_ends"}:
                assert values[name].shape == expected[name].shape, name
                # int8 numbers a value that lies where two parts of a range meet up or down.
                is_near = np.abs(values[name] - expected[name]) <= 1e-6
                assert is_near.mean() > 0.999 if name == "rounded" else is_near.all(), name
                assert np.array_equal(values[name], of_all[0][0][name])
            assert np.array_equal(values["index"], expected["index"])
            for kind in ("retrieval", "negation", "sts", "reranking"):
                assert_near(measured[kind], scores[kind])
        z_ND = np.load(folder / str(count) / "out.npy")
        np.testing.assert_allclose(z_ND, np.load(folder / "1" / "out.npy"), rtol=0, atol=1e-6)
    assert 0 < scores["retrieval"]["found"]["whole"]["ndcg@10"] < 1
    assert 0 < scores["retrieval"]["found"]["bm25"]["ndcg@10"] < 1
    assert expected["blocks"].tolist() == [256, 256, 188]


def assert_near(found, expected):
    assert found.keys() == expected.keys()
    for task, systems in expected.items():
        for system, measures in systems.items():
            assert found[task][system] == pytest.approx(
                measures, abs=1e-6 if system != "rounded" else 0.01
            )


@pytest.mark.slow
def test_each_process_encodes_its_own_share_alone(together):
    _, found = together
    for count, of_all in found.items():
        own = [values["own"] for values, _ in of_all]
        assert sorted(np.concatenate(own).tolist()) == list(range(len(TEXTS)))
        assert max(map(len, own)) <= len(TEXTS) / count + PART_TEXTS
        ends = [values["own_ends"].tolist() for values, _ in of_all]
        assert ends == [ends[0]] * count


def encode(model, texts, out, *flags):
    """`jina-jax encode` in a process of its own."""
    return subprocess.Popen(
        [sys.executable, "-m", "jina_jax.cli", "encode", model, texts, out, *flags],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def encode_by_two(model, files, out):
    port = free_port()
    return [encode(model, file, out, *together_at(port, rank)) for rank, file in enumerate(files)]


def write(path, count, *, last="the end"):
    lines = [*(f"{text} {i}" for i, text in enumerate(texts(count - 1, longest=8))), last]
    path.write_text("\n".join(lines) + "\n")
    return path


@pytest.mark.slow
def test_another_file_on_one_host_is_named(exported, tmp_path):
    """Both processes end, with the file and the remedy."""
    one, other = write(tmp_path / "in.txt", 9), write(tmp_path / "other.txt", 9, last="an end")
    for file, found in (
        (other, ["processes 1 have other texts in", "give every host the same file"]),
        (tmp_path / "none.txt", [f"cannot read {tmp_path / 'none.txt'}"]),
    ):
        for process in encode_by_two(exported, (one, file), tmp_path / "out.npy"):
            _, errors = process.communicate(timeout=300)
            assert process.returncode == 2, errors
            assert all(words in errors for words in found) and "Traceback" not in errors
    assert not list(tmp_path.glob("*.npy"))


@pytest.mark.slow
def test_what_two_processes_began_one_ends(exported, tmp_path):
    """Both are killed in the middle; nothing that was written is encoded again."""
    file, out = write(tmp_path / "in.txt", 40_000), tmp_path / "out.npy"
    both = encode_by_two(exported, (file, file), out)
    marker = tmp_path / ".out.npy.partial" / "done" / "embeddings"
    while both[0].poll() is None and not (marker.is_file() and int(marker.read_text() or 0)):
        time.sleep(0.002)
    for process in both:
        process.send_signal(signal.SIGKILL)
    assert [process.wait() for process in both] == [-signal.SIGKILL] * 2
    done = int(marker.read_text())
    result = tmp_path / ".out.npy.partial" / "result"
    written = result.read_bytes()[: 128 + done * 32 * 4]
    assert 0 < done < 40_000 and not out.exists()
    for path in (out, tmp_path / "whole.npy"):
        process = encode(exported, file, path)
        said, errors = process.communicate(timeout=300)
        assert process.returncode == 0 and "40,000 embeddings" in said, errors
    assert out.read_bytes().startswith(written)
    z_ND, expected = np.load(out), np.load(tmp_path / "whole.npy")
    np.testing.assert_allclose(z_ND, expected, rtol=0, atol=1e-6)
