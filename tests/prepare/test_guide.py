"""A guide's embeddings: made after all filters, kept in the shards, and given to batches."""

import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from sentence_transformers import SentenceTransformer

from jina_jax.config import (
    ConsistencyConfig,
    FeedConfig,
    GuideConfig,
    LossConfig,
    RunConfig,
    TrainConfig,
)
from jina_jax.config.validation import validate
from jina_jax.doctor.run import prepared_checks
from jina_jax.errors import UserError
from jina_jax.feed.pipeline import feed_of_run
from jina_jax.inference.model_folder import model_sha256
from jina_jax.prepare import guide as stage
from jina_jax.prepare.guide import quantised
from jina_jax.prepare.run import prepare
from jina_jax.shards.manifest import Guide, check_guide, load_manifest, save_manifest
from jina_jax.shards.shard_set import ShardSet
from jina_jax.text.identity import text_hash
from jina_jax.train.loop import check_data
from tests.pairs import config, files, markers, run
from tests.prepare.guided import PROMPTS, guided, rows

ROOT = Path(__file__).parents[2]


def shards_of(out, number):
    summary = load_manifest(out).sources[number]
    shards = ShardSet([out / shard.path for shard in summary.shards])
    return shards.read(range(len(shards)))


@pytest.fixture(scope="module")
def prepared(tmp_path_factory, sentence_folder):
    folder = tmp_path_factory.mktemp("guide")
    data = guided(folder, sentence_folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stage, "BLOCK_TEXTS", 16)
        return data, run(data, folder / "out"), folder / "out"


def test_vectors_as_bytes_by_hand():
    z_ND = np.array([[0.5, -1, 0.1], [0.02, 0.0, -0.01], [0, 0, 0]], np.float32)
    # 63.5 is between two even numbers' neighbours: to the even one.
    assert quantised(z_ND).tolist() == [[64, -127, 13], [127, 0, -64], [0, 0, 0]]


def test_shards_hold_what_sentence_transformers_gives_within_rounding(prepared, sentence_folder):
    _, manifest, out = prepared
    assert manifest.guide == Guide(
        str(sentence_folder), model_sha256(sentence_folder), 24, *PROMPTS
    )
    assert manifest.models["guide"] == manifest.guide.sha256
    theirs = SentenceTransformer(str(sentence_folder), device="cpu")
    every = [text for row in rows() for text in row.values() if text]
    every += [f"which {i}" for i in range(60)] + [f"the answer {i}" for i in range(10)]
    wanted = {}
    for prompt in PROMPTS:
        z_ND = theirs.encode([prompt + text for text in every])
        scaled = 127 * z_ND / np.abs(z_ND).max(1, keepdims=True)
        wanted |= {(prompt, text_hash(t)): z for t, z in zip(every, scaled, strict=True)}
    seen = 0
    for number in (0, 1):
        records = shards_of(out, number)
        for i, j in np.argwhere(records.lengths_NS > 0):
            key = PROMPTS[int(j > 0)], records.hashes_NSx2[i, j].tobytes()
            np.testing.assert_allclose(records.guide_NSG[i, j], wanted[key], atol=0.5 + 1e-3)
            seen += 1
        missing = records.lengths_NS == 0
        assert missing.any() == (number == 0) and not records.guide_NSG[missing].any()
    assert seen > 250


def test_batches_have_them(prepared):
    data, manifest, out = prepared
    feed = FeedConfig(global_batch_size=8, query_tokens=16, positive_tokens=16, row_tokens=16)
    run_config = RunConfig(name="r", data_dir=str(out), data=data, feed=feed, train=TrainConfig(6))
    assert feed_of_run(run_config, manifest).feed.fields.guide_dims == 0
    asking = dataclasses.replace(run_config, loss=LossConfig(mask_by="guide"))
    of_run = feed_of_run(asking, manifest)
    assert of_run.feed.fields.guide_dims == 24
    for batch in of_run.batches:
        expected = shards_of(out, batch.source).guide_NSG[batch.record_B]
        np.testing.assert_array_equal(batch.arrays.guide_BTG, expected)


class Counted:
    """Counts what a guide embeds."""

    def __init__(self, encoder):
        self._encoder, self.texts = encoder, []

    def encode(self, texts, *, prompt):
        self.texts += [(prompt, text) for text in texts]
        return self._encoder.encode(texts, prompt=prompt)


@pytest.fixture
def counted(monkeypatch, sentence_folder):
    encoder = Counted(stage._encoder(str(sentence_folder), model_sha256(sentence_folder), 32))
    monkeypatch.setattr(stage, "_encoder", lambda *_: encoder)
    return encoder


def test_each_text_is_embedded_once_and_not_again_by_another_preparation(
    prepared, tmp_path, sentence_folder, counted, monkeypatch
):
    monkeypatch.setattr(stage, "BLOCK_TEXTS", 16)
    data = guided(tmp_path, sentence_folder)
    run(data, tmp_path / "out")
    assert len(counted.texts) == len(set(counted.texts)) > 150
    queries = {text for prompt, text in counted.texts if prompt == PROMPTS[0]}
    assert queries >= {row["query"] for row in rows()}
    before = len(counted.texts)
    (tmp_path / "out").rename(tmp_path / "old")
    run(data, tmp_path / "out")
    assert len(counted.texts) == before
    assert files(tmp_path / "out") == files(tmp_path / "old")
    # Of whatever size blocks are, the shards are the same but for rounding of what is packed.
    records = [shards_of(folder, 0).guide_NSG for folder in (tmp_path / "out", prepared[2])]
    assert np.abs(records[0].astype(int) - records[1]).max() <= 1


def test_filters_are_not_run_again_for_a_guide(tmp_path, sentence_folder, counted):
    data = guided(tmp_path, sentence_folder)
    consistency = ConsistencyConfig(enabled=True, model=str(sentence_folder), top_k=40)
    data = dataclasses.replace(data, consistency=consistency)
    run(dataclasses.replace(data, guide=GuideConfig()), tmp_path / "out")
    assert not counted.texts
    scores = {p: p.stat().st_mtime_ns for p in (tmp_path / "out.work" / "scores").iterdir()}
    with pytest.raises(UserError, match=r"guide\.model:  → (.|\n)*delete .* to prepare it again"):
        run(data, tmp_path / "out")
    (tmp_path / "out").rename(tmp_path / "old")
    run(data, tmp_path / "out")
    assert counted.texts
    now = {p: p.stat().st_mtime_ns for p in (tmp_path / "out.work" / "scores").iterdir()}
    assert scores == now


def test_the_cost_is_told_before(tmp_path, sentence_folder, capsys):
    data = guided(tmp_path, sentence_folder, dims=10)
    manifest = prepare(data, tmp_path / "out", progress=True)
    said = capsys.readouterr().err
    records = [shards_of(tmp_path / "out", number) for number in (0, 1)]
    total = sum((r.lengths_NS > 0).sum() for r in records)
    of_record = 10 * total / sum(map(len, records))
    assert f"A text takes 10 bytes in the shards, a record {of_record:,.0f} on average" in said
    assert said.index("A text takes") < said.index("guide: embed")
    assert manifest.guide.dims == 10 == records[0].guide_NSG.shape[2]


def test_without_prompts_those_of_the_model_are_taken(tmp_path, sentence_folder):
    folder = tmp_path / "model"
    shutil.copytree(sentence_folder, folder)
    prompts = {"prompts": {"query": "q: ", "passage": "p: "}, "default_prompt_name": None}
    (folder / "config_sentence_transformers.json").write_text(json.dumps(prompts))
    guide = stage.configured_guide(GuideConfig(str(folder), document_prompt=""))
    assert guide.prompts == ("q: ", "")


SCRIPT = """
import sys
from pathlib import Path
from jina_jax.prepare import guide
from tests.pairs import run
from tests.prepare.guided import guided

guide.BLOCK_TEXTS = 4
folder, model, out = map(Path, sys.argv[1:])
run(guided(folder, model), out)
"""


@pytest.mark.slow
def test_a_kill_while_the_guide_works_costs_at_most_a_block(tmp_path, sentence_folder):
    arguments = [sys.executable, "-c", SCRIPT, str(tmp_path), str(sentence_folder)]
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    work = tmp_path / "out.work"

    def embedded():
        return {n: t for n, t in markers(work).items() if n.startswith("guide-embed/")}

    process = subprocess.Popen([*arguments, str(tmp_path / "out")], env=env)
    while process.poll() is None and len(embedded()) < 3:
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.wait()
    before = embedded()
    assert process.returncode == -signal.SIGKILL and 3 <= len(before) < 40
    blocks = {p.name: p.stat().st_ino for p in (work / "guide-embed").rglob("*.arrow")}
    subprocess.run([*arguments, str(tmp_path / "out")], env=env, check=True)
    now = {p.name: p.stat().st_ino for p in (work / "guide-embed").rglob("*.arrow")}
    assert blocks.items() <= now.items() and len(now) > len(blocks) >= 3
    # What is made in one go, in this process.
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stage, "BLOCK_TEXTS", 4)
        run(guided(tmp_path, sentence_folder), tmp_path / "whole")
    assert files(tmp_path / "out") == files(tmp_path / "whole")


def test_a_guide_that_cannot_be_used_is_refused_before_anything_is_read(tmp_path, sentence_folder):
    with pytest.raises(UserError, match=r"data\.guide\.dims=25 must lie in 0\.\.24"):
        run(guided(tmp_path, sentence_folder, dims=25), tmp_path / "out")
    with pytest.raises(UserError, match="is not a folder"):
        run(guided(tmp_path, tmp_path / "none"), tmp_path / "out")
    assert not (tmp_path / "out").exists()
    data = dataclasses.replace(config(), guide=GuideConfig(dims=8))
    with pytest.raises(UserError, match=r"data\.guide\.dims has no effect without data\.guide"):
        validate(RunConfig(name="r", data=data))


def test_shards_that_lack_what_is_asked_for_are_told(prepared, tmp_path):
    data, manifest, out = prepared
    check = RunConfig(name="r", data_dir=str(out), data=data)
    check_data(check, manifest)
    check_guide(manifest, out, "loss.x=1")
    without = dataclasses.replace(manifest, guide=None)
    with pytest.raises(UserError, match=r"loss\.x=1 needs a guide's embeddings, and the shards"):
        check_guide(without, out, "loss.x=1")
    with pytest.raises(UserError, match=r"data\.guide\.model=.* needs a guide's embeddings"):
        check_data(check, without)
    for more, said in (
        ({"label_field": "class"}, "label_field='class', and its shards in .* prepared without"),
        ({"score_field": "score"}, "score_field='score', and its shards"),
        ({"in_batch": False}, "in_batch=False, and its pairs have no other negatives"),
    ):
        sources = (data.sources[0], dataclasses.replace(data.sources[1], **more))
        changed = dataclasses.replace(data, sources=sources)
        with pytest.raises(UserError, match=said):
            check_data(dataclasses.replace(check, data=changed), manifest)
    # A manifest of other data than the shards'.
    found = [c for c in prepared_checks(out, full=False) if c.verdict == "failed"]
    assert not found
    kept = (out / "manifest.json").read_bytes()
    try:
        save_manifest(without, out)
        found = [c.detail for c in prepared_checks(out, full=False) if c.verdict == "failed"]
        assert len(found) == 1 and "has other labels, scores or embeddings" in found[0]
    finally:
        (out / "manifest.json").write_bytes(kept)
