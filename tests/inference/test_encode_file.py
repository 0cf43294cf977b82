import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pyarrow.parquet as pq
import pytest
from safetensors.numpy import load_file
from sentence_transformers.util.quantization import quantize_embeddings

from jina_jax.cli.main import main
from jina_jax.config import T5Config, TokenizerConfig
from jina_jax.errors import UserError
from jina_jax.export.huggingface import export_huggingface
from jina_jax.inference import embedder as embedder_module
from jina_jax.inference import encode_file as module
from jina_jax.inference.embedder import Embedder
from jina_jax.inference.encode_file import count_texts, encode_file, read_ranges
from jina_jax.model.encoder import init_params
from jina_jax.text.tokenizer import build_tokenizer

CONFIG = T5Config(vocab_size=128, d_model=16, d_kv=4, d_ff=32, num_layers=2, num_heads=4)
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    (folder / "tokenizer").mkdir()
    texts = [f"the text number {i} tells of {i * i} things and more" for i in range(200)]
    build_tokenizer(TokenizerConfig("train", vocab_size=100), iter(texts), folder / "tokenizer")
    for name, seed in (("export", 0), ("other", 1)):
        params = init_params(CONFIG, jax.random.key(seed))
        export_huggingface(
            params, CONFIG, folder / "tokenizer", folder / name, max_tokens=24, card="# A card\n"
        )
    return folder


def write(path, count):
    lines = [json.dumps({"text": f"text {i} of things " + "and more " * (i % 9)})
             for i in range(count)]  # fmt: skip
    path.write_text("\n".join(lines) + "\n")
    return path


def encode(embedder, texts, out, **options):
    count = count_texts(texts, "text", progress=False)
    encode_file(embedder, texts, count, out, progress=False, **options)
    return count


@pytest.fixture
def small_blocks(monkeypatch):
    for where in (module, embedder_module):
        monkeypatch.setattr(where, "TEXTS_AT_ONCE", 16)


def test_the_formats_hold_what_the_embedder_gives(model, tmp_path, small_blocks):
    texts = write(tmp_path / "in.jsonl", 50)
    embedder = Embedder.load(model / "export", truncate_dim=7)
    lines = [json.loads(line)["text"] for line in texts.read_text().splitlines()]
    expected = embedder.encode(lines)
    outputs = [tmp_path / f"out{ending}" for ending in (".npy", ".safetensors", ".parquet")]
    for out in outputs:
        assert encode(embedder, texts, out) == 50
    np.testing.assert_array_equal(np.load(outputs[0]), expected)
    np.testing.assert_array_equal(load_file(outputs[1])["embeddings"], expected)
    table = pq.read_table(outputs[2])
    assert table["text"].to_pylist() == lines
    np.testing.assert_array_equal(np.array(table["embedding"].to_pylist(), np.float32), expected)
    half = tmp_path / "half.npy"
    encode(embedder, texts, half, precision="float16")
    np.testing.assert_array_equal(np.load(half), expected.astype(np.float16))
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(
        [texts.name, half.name, *(out.name for out in outputs)]
    )


def test_truncation_is_the_first_dimensions_at_unit_length(model):
    texts = ["things", "text number 3"]
    whole = Embedder.load(model / "export").encode(texts)[:, :7]
    cut = Embedder.load(model / "export", truncate_dim=7).encode(texts)
    np.testing.assert_allclose(cut, whole / np.linalg.norm(whole, axis=1, keepdims=True), atol=1e-6)
    with pytest.raises(UserError, match=r"1\.\.16"):
        Embedder.load(model / "export", truncate_dim=17)


def test_bfloat16_is_near_and_not_the_same(model):
    texts = [f"text number {i}" for i in range(20)]
    exact, rounded = (
        Embedder.load(model / "export", compute_dtype=dtype).encode(texts)
        for dtype in ("float32", "bfloat16")
    )
    difference = np.abs(exact - rounded).max()
    assert 1e-5 < difference < 0.05


def read(path):
    if path.suffix == ".npy":
        return np.load(path)
    if path.suffix == ".safetensors":
        return load_file(path)["embeddings"]
    column = pq.read_table(path)["embedding"].combine_chunks()
    return column.flatten().to_numpy().reshape(len(column), -1)


@pytest.mark.parametrize("ending", [".npy", ".safetensors", ".parquet"])
def test_files_of_every_precision_are_what_sentence_transformers_makes(
    model, tmp_path, small_blocks, ending
):
    corpus, queries = write(tmp_path / "in.jsonl", 50), write(tmp_path / "queries.jsonl", 7)
    embedder = Embedder.load(model / "export", truncate_dim=12)
    z_ND, q_QD = (
        embedder.encode([json.loads(line)["text"] for line in path.read_text().splitlines()])
        for path in (corpus, queries)
    )
    for precision in ("int8", "uint8", "binary", "ubinary"):
        out = tmp_path / f"{precision}{ending}"
        encode(embedder, corpus, out, precision=precision)
        expected = quantize_embeddings(z_ND, precision)
        assert read(out).dtype == expected.dtype
        np.testing.assert_array_equal(read(out), expected)
    # Queries in the ranges of the passages, which were kept.
    ranges = read_ranges(tmp_path / "int8.ranges.npy", 12)
    np.testing.assert_array_equal(ranges, [z_ND.min(axis=0), z_ND.max(axis=0)])
    out = tmp_path / f"queries{ending}"
    encode(embedder, queries, out, precision="int8", ranges_2D=ranges)
    np.testing.assert_array_equal(read(out), quantize_embeddings(q_QD, "int8", ranges=ranges))
    assert sorted(p.name for p in tmp_path.glob("*.ranges.npy")) == [
        "int8.ranges.npy", "uint8.ranges.npy",
    ]  # fmt: skip


def test_the_command_line_quantises_and_refuses_ranges_that_do_not_fit(model, tmp_path, capsys):
    texts, one = write(tmp_path / "in.jsonl", 30), write(tmp_path / "one.jsonl", 1)
    start, out = ["encode", str(model / "export")], str(tmp_path / "out.npy")
    assert main([*start, str(texts), out, "--precision", "int8"]) == 0
    assert f"for --ranges: {tmp_path / 'out.ranges.npy'}" in capsys.readouterr().out
    ranges = ["--ranges", str(tmp_path / "out.ranges.npy")]
    single = str(tmp_path / "one.npy")
    assert main([*start, str(one), single, "--precision", "int8", *ranges]) == 0
    np.testing.assert_array_equal(np.load(single)[0], np.load(out)[0])
    np.save(tmp_path / "upside-down.npy", np.load(tmp_path / "out.ranges.npy")[::-1])
    cases = [
        ([str(one), single, "--precision", "int8"], "of one text alone has no range to divide"),
        ([str(texts), out, "--precision", "binary", *ranges], "--ranges is for --precision int8"),
        ([str(texts), out, "--precision", "int8", *ranges, "--truncate-dim", "5"], "5 dimensions"),
        ([str(texts), out, "--precision", "int8", "--ranges", str(texts)], "cannot be read"),
        ([str(texts), out, "--precision", "int8", "--ranges", str(tmp_path / "upside-down.npy")],
         "is above the largest"),
    ]  # fmt: skip
    for arguments, message in cases:
        assert main([*start, *arguments]) == 2
        assert message in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize(
    ("ending", "precision"),
    [(".npy", "float32"), (".parquet", "float32"), (".npy", "int8"), (".safetensors", "binary")],
)
def test_a_failure_loses_nothing_and_the_next_call_goes_on(
    model, tmp_path, small_blocks, monkeypatch, ending, precision
):
    texts, out = write(tmp_path / "in.jsonl", 60), tmp_path / f"out{ending}"
    whole = tmp_path / f"whole{ending}"
    embedder = Embedder.load(model / "export")
    encode(embedder, texts, whole, precision=precision)
    stream, seen = Embedder.stream, []

    def failing(self, texts, prompt):
        for block in stream(self, texts, prompt):
            seen.append(len(block))
            yield block
            if len(seen) == 2:
                raise OSError("disk full")

    monkeypatch.setattr(Embedder, "stream", failing)
    with pytest.raises(OSError, match="disk full"):
        encode(embedder, texts, out, precision=precision)
    assert not out.exists()
    encode(embedder, texts, out, precision=precision)
    assert out.read_bytes() == whole.read_bytes()
    assert seen == [16, 16, 16, 12]


def test_another_model_begins_anew(model, tmp_path, small_blocks, monkeypatch):
    texts, out = write(tmp_path / "in.jsonl", 40), tmp_path / "out.npy"
    replace = Path.replace

    def failing(self, target):
        if Path(target) == out:
            raise OSError("no rights")
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", failing)
    with pytest.raises(OSError, match="no rights"):
        encode(Embedder.load(model / "export"), texts, out)
    monkeypatch.undo()
    other = Embedder.load(model / "other")
    encode(other, texts, out)
    lines = [json.loads(line)["text"] for line in texts.read_text().splitlines()]
    np.testing.assert_allclose(np.load(out), other.encode(lines), atol=1e-6)


def test_a_text_that_cannot_be_read_is_named_before_the_work(model, tmp_path):
    texts, out = write(tmp_path / "in.jsonl", 5), tmp_path / "out.npy"
    texts.write_text(texts.read_text() + '{"txt": "x"}\n')
    with pytest.raises(UserError, match=r"in\.jsonl:6"):
        encode(Embedder.load(model / "export"), texts, out)
    assert [p.name for p in tmp_path.iterdir()] == ["in.jsonl"]


@pytest.mark.slow
def test_killed_and_run_again_it_gives_the_same_file(model, tmp_path):
    texts = write(tmp_path / "in.jsonl", 30_000)

    def command(out):
        return [sys.executable, "-m", "jina_jax.cli", "encode", model / "export", texts, out]

    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    whole, out = tmp_path / "whole.npy", tmp_path / "out.npy"
    subprocess.run(command(whole), check=True, env=environment, capture_output=True)
    kills = 0
    for blocks in (1, 4):
        process = subprocess.Popen(command(out), env=environment, stderr=subprocess.DEVNULL)
        marker = tmp_path / ".out.npy.partial" / "done" / "embeddings"
        while process.poll() is None:
            if marker.is_file() and int(marker.read_text() or 0) >= blocks * 4096:
                process.send_signal(signal.SIGKILL)
                kills += process.wait() == -signal.SIGKILL
            time.sleep(0.002)
    assert kills == 2 and not out.exists()
    subprocess.run(command(out), check=True, env=environment, capture_output=True)
    assert out.read_bytes() == whole.read_bytes()
    assert np.load(out).shape == (30_000, 16)
