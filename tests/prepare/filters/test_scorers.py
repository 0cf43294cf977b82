"""The filters with a model as stages of preparation, with small models of the same architecture."""

import json
from dataclasses import replace

import numpy as np
import pyarrow.parquet as pq
import pytest

from jina_jax.config import ConsistencyConfig, EngineConfig, MarginConfig, TokenizerConfig
from jina_jax.errors import UserError
from jina_jax.inference.embedder import Embedder
from jina_jax.prepare import scoring
from jina_jax.prepare.explain import score_histograms
from jina_jax.prepare.filters import scorers as stages
from jina_jax.prepare.filters.margin import CrossEncoder, triplet_logits
from jina_jax.prepare.ledger import ledger_samples
from jina_jax.shards.manifest import LEDGER
from jina_jax.shards.shard_set import ShardSet
from jina_jax.text.identity import normalise
from jina_jax.text.tokenizer import load_tokenizer
from tests.pairs import config, files, number_name, run, write
from tests.random_texts import texts


@pytest.fixture
def source(tmp_path):
    """Queries that begin as their passages do; some passages recur, one in other spelling."""
    passages = [f"{text} {number_name(i)}" for i, text in enumerate(texts(60, seed=3, longest=6))]
    passages += passages[:10]
    passages[65] = passages[65].upper()
    rows = [
        {"query": f"{passage[: 3 * (i % 5)]} {text} {number_name(i)}", "positive": passage}
        for i, (passage, text) in enumerate(zip(passages, texts(70, seed=4, longest=3)))
    ]
    return write(tmp_path / "pairs.jsonl", rows)


def small(source, **more):
    """The words of random texts fill no larger vocabulary."""
    return replace(config(source, eval_pairs=2, **more), tokenizer=TokenizerConfig("train", 32))


def consistent(source, folder, sentence_folder, *, workers=1, **more):
    settings = small(
        source, engine=EngineConfig("local", workers), records_per_shard=30,
        consistency=ConsistencyConfig(enabled=True, model=str(sentence_folder), **more),
    )  # fmt: skip
    return run(settings, folder)


def what_became(folder):
    """Query → rank of every pair that was dropped by the filter."""
    rows = ledger_samples(folder, source="pairs", reason="inconsistent", most=999)
    assert {(row.stage, row.file.rsplit("/")[-1]) for row in rows} == {
        ("consistency", "pairs.jsonl")
    }
    return {row.query: row.score for row in rows}


def expected_ranks(source, sentence_folder):
    rows = [json.loads(line) for line in source.read_text().splitlines()]
    encoder = Embedder.load(sentence_folder)
    queries, passages = ([row[name] for row in rows] for name in ("query", "positive"))
    q_ND, p_ND = encoder.encode(queries).astype(float), encoder.encode(passages).astype(float)
    names = np.array([normalise(text) for text in passages])
    ranks = {}
    for query, q_D, p_D, name in zip(queries, q_ND, p_ND, names, strict=True):
        ranks[query] = int((p_ND[names != name] @ q_D > q_D @ p_D + 1e-6).sum())
    return ranks


def test_pairs_with_better_passages_go(source, tmp_path, sentence_folder):
    expected = expected_ranks(source, sentence_folder)
    manifest = consistent(source, tmp_path / "out", sentence_folder, top_k=3)
    lost = what_became(tmp_path / "out")
    assert lost == {query: rank for query, rank in expected.items() if rank >= 3}
    assert 10 < len(lost) < 60
    (summary,) = manifest.sources
    assert summary.dropped["inconsistent"] == len(lost)
    histogram = score_histograms(manifest)["pairs", "consistency"]
    ranks = np.bincount(list(expected.values()), minlength=50)
    assert histogram.kept == (*ranks[:3], *[0] * 47)
    assert histogram.dropped == (0, 0, 0, *ranks[3:49], sum(ranks[49:]))
    assert manifest.models == {"consistency": stages.model_sha256(sentence_folder)}
    row = pq.read_table(tmp_path / "out" / LEDGER).to_pylist()
    details = {r["query"]: r["detail"] for r in row if r["reason"] == "inconsistent"}
    query = next(iter(lost))
    assert details[query] == f"{expected[query]} sampled passages score above its own"


def test_blocks_change_no_decision(source, tmp_path, sentence_folder, monkeypatch):
    one = consistent(source, tmp_path / "one", sentence_folder)
    monkeypatch.setattr(scoring, "BLOCK_ROWS", 7)
    two = consistent(source, tmp_path / "two", sentence_folder, query_block=16, sample_block=128)
    # Texts that are encoded beside others come out a rounding apart, and so do the scores.
    scores = [scores_in_shards(m, tmp_path / n) for m, n in ((one, "one"), (two, "two"))]
    assert list(scores[0]) == list(scores[1])
    np.testing.assert_allclose(*(np.array(list(s.values())) for s in scores), atol=1e-6)
    found = [files(tmp_path / name) for name in ("one", "two")]
    assert found[0].keys() == found[1].keys()
    differ = {str(path) for path in found[0] if found[0][path] != found[1][path]}
    assert differ <= {"manifest.json", "train/pairs-00000.arrayrecord"}


def test_a_sample_of_fewer_lowers_ranks(source, tmp_path, sentence_folder):
    expected = expected_ranks(source, sentence_folder)
    consistent(source, tmp_path / "out", sentence_folder, top_k=1, sample_size=20)
    lost = what_became(tmp_path / "out")
    assert len(lost) > 0 and max(lost.values()) <= 20
    assert all(rank <= expected[query] for query, rank in lost.items())
    assert any(rank < expected[query] for query, rank in lost.items())


class Counted:
    """Counts what a SentenceEncoder encodes."""

    def __init__(self, encoder):
        self._encoder, self.texts = encoder, 0

    def __getattr__(self, name):
        return getattr(self._encoder, name)

    def encode(self, texts, *, prompt):
        self.texts += len(texts)
        return self._encoder.encode(texts, prompt=prompt)


@pytest.fixture
def counted(monkeypatch, sentence_folder):
    encoder = Counted(Embedder.load(sentence_folder))
    monkeypatch.setattr(stages, "sentence_encoder", lambda *_: encoder)
    return encoder


def test_each_text_is_embedded_once_and_no_more_for_another_threshold(
    source, tmp_path, sentence_folder, counted
):
    consistent(source, tmp_path / "out", sentence_folder, top_k=3)
    assert counted.texts == 140  # The passages as the sample.
    first = what_became(tmp_path / "out")
    (tmp_path / "out").rename(tmp_path / "old")
    consistent(source, tmp_path / "out", sentence_folder, top_k=8)
    assert counted.texts == 140
    assert what_became(tmp_path / "out") == {q: r for q, r in first.items() if r >= 8}
    (tmp_path / "out").rename(tmp_path / "older")
    consistent(source, tmp_path / "out", sentence_folder, top_k=8, sample_size=70)
    assert counted.texts == 140  # The same sample.
    (tmp_path / "out").rename(tmp_path / "oldest")
    consistent(source, tmp_path / "out", sentence_folder, top_k=8, sample_size=30)
    # 30 of the sample, all queries, and the 34 passages that are not in the sample.
    assert counted.texts == 140 + 30 + 70 + 34
    stages._sampled.cache_clear()


def test_the_sample_is_the_same_with_another_seed_and_another_source(
    source, tmp_path, sentence_folder, counted
):
    settings = small(
        source,
        consistency=ConsistencyConfig(enabled=True, model=str(sentence_folder), sample_size=20),
        engine=EngineConfig("local", 1, work_dir=str(tmp_path / "work")),
    )
    run(settings, tmp_path / "out")
    embedded = counted.texts
    assert embedded <= 20 + 70 + 50
    lost = what_became(tmp_path / "out")
    run(replace(settings, seed=5), tmp_path / "seed")
    assert counted.texts == embedded and what_became(tmp_path / "seed") == lost
    others = zip(*(texts(40, seed=seed, longest=4) for seed in (8, 9)), strict=True)
    rows = [
        {"query": f"{q} {number_name(i)}", "positive": f"{p} {number_name(900 + i)}"}
        for i, (q, p) in enumerate(others)
    ]
    other = write(tmp_path / "other.jsonl", rows)
    more = replace(settings, sources=(*config(other).sources, *settings.sources))
    run(more, tmp_path / "more")
    assert counted.texts == embedded + 20 + 40 + 20
    rows = ledger_samples(tmp_path / "more", source="pairs", reason="inconsistent", most=999)
    assert {row.query: row.score for row in rows} == lost
    stages._sampled.cache_clear()


def test_margin_of_triplets(tmp_path, cross_encoder_folder):
    rows = [
        {"query": f"{q} {number_name(i)}", "positive": f"{p} a", "negative": f"{n} b"}
        for i, (q, p, n) in enumerate(zip(*(texts(60, seed=s, longest=6) for s in (3, 4, 5))))
    ]
    source = write(tmp_path / "triplets.jsonl", rows)
    margin = MarginConfig(enabled=True, model=str(cross_encoder_folder), threshold=0.01)

    def prepared(margin):
        settings = small(source, margin=margin)
        return run(settings, tmp_path / "out")

    logits = triplet_logits((tuple(r.values()) for r in rows), CrossEncoder(cross_encoder_folder))
    expected = {r["query"]: a - b for r, (a, b) in zip(rows, logits.astype(float), strict=True)}
    manifest = prepared(margin)
    lost = ledger_samples(tmp_path / "out", source="triplets", reason="margin", most=999)
    assert {r.query for r in lost} == {q for q, value in expected.items() if value <= 0.01}
    assert 5 < len(lost) < 55
    for row in lost:
        assert row.score == pytest.approx(expected[row.query], abs=1e-6)
    assert manifest.models == {"margin": stages.model_sha256(cross_encoder_folder)}

    # The logits are in the cache, whatever the scale and the threshold.
    (tmp_path / "out").rename(tmp_path / "old")
    before = {p.name for p in (tmp_path / "out.work" / "scores").iterdir()}
    manifest = prepared(replace(margin, scale="sigmoid", threshold=0.001))
    assert {p.name for p in (tmp_path / "out.work" / "scores").iterdir()} == before
    histogram = score_histograms(manifest)["triplets", "margin"]
    assert (histogram.low, histogram.high) == (-1.0, 1.0)


def scores_in_shards(manifest, folder):
    """Query → teacher's scores in its training record."""
    (source,) = manifest.sources
    tokenizer = load_tokenizer(folder / "tokenizer")
    shards = ShardSet([folder / shard.path for shard in source.shards])
    records = shards.read(range(len(shards)))
    assert source.has_scores
    queries = [tokenizer.decode(records.text(i, 0).tolist()) for i in range(len(records))]
    return dict(zip(queries, records.scores_NS, strict=True))


def test_shards_hold_the_cosines_of_the_encoder(source, tmp_path, sentence_folder):
    manifest = consistent(source, tmp_path / "out", sentence_folder, top_k=30)
    found = scores_in_shards(manifest, tmp_path / "out")
    rows = [json.loads(line) for line in source.read_text().splitlines()]
    encoder = Embedder.load(sentence_folder)
    q_ND, p_ND = (encoder.encode([row[n] for row in rows]) for n in ("query", "positive"))
    cosines = {
        " ".join(row["query"].split()): c for row, c in zip(rows, (q_ND * p_ND).sum(1), strict=True)
    }
    assert len(found) > 20
    for query, (score,) in found.items():
        assert score == pytest.approx(cosines[query], abs=1e-5)


def test_shards_hold_the_logits_of_the_cross_encoder(tmp_path, cross_encoder_folder):
    names = ("query", "positive", "negative")
    columns = [texts(60, seed=seed, longest=5) for seed in (5, 6, 7)]
    rows = [
        {name: f"{text} {number_name(i)}" for name, text in zip(names, row)}
        for i, row in enumerate(zip(*columns))
    ]
    several = [row | {"negative": f"{row['negative']} too"} for row in rows[:10]]
    settings = small(
        write(tmp_path / "triplets.jsonl", [*rows, *several]),
        margin=MarginConfig(True, str(cross_encoder_folder), threshold=-100.0, scale="logit"),
        negatives_per_record=2,
    )  # fmt: skip
    manifest = run(settings, tmp_path / "out")
    found = scores_in_shards(manifest, tmp_path / "out")
    logits = triplet_logits(
        (tuple(row[n] for n in names) for row in rows), CrossEncoder(cross_encoder_folder)
    )
    expected = dict(zip((" ".join(r["query"].split()) for r in rows), logits, strict=True))
    assert len(found) > 40
    for row in several:
        found.pop(" ".join(row["query"].split()), None)
    for query, scores in found.items():
        assert scores[:2] == pytest.approx(expected[query], abs=1e-4)
        assert np.isnan(scores[2])


def test_a_model_that_cannot_be_had_is_found_before_the_work(tmp_path, source):
    settings = config(source, consistency=ConsistencyConfig(enabled=True, model=str(tmp_path)))
    with pytest.raises(UserError, match="holds neither model"):
        run(settings, tmp_path / "out")
    assert not (tmp_path / "out.work").exists()


def test_another_model_under_the_name_is_refused(sentence_folder):
    with pytest.raises(UserError, match="another model than the preparation began with"):
        stages.sentence_encoder(str(sentence_folder), "00")
