import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

import numpy as np
import pyarrow as pa
import pytest

from jina_jax.config import EngineConfig, LengthConfig
from jina_jax.errors import UserError
from jina_jax.prepare import scoring
from jina_jax.prepare.explain import score_histograms
from jina_jax.prepare.filters.filter import filter_key, score_key, verdict
from jina_jax.prepare.filters.lengths import LengthFilter
from jina_jax.prepare.ledger import ledger_counts, ledger_samples
from jina_jax.shards.manifest import StageCounts, load_manifest
from tests.pairs import config, files, pair, run, triplet, write


@dataclass(frozen=True)
class LastDigit:
    """Scores a pair by the last digit of its number; learns what its sample is."""

    least: float
    log: str = ""
    sample_size: int = 20
    name: ClassVar[str] = "digit"
    version: ClassVar[int] = 1
    records: ClassVar[tuple[str, ...]] = ("pair",)
    score_range: ClassVar[tuple[float, float]] = (0.0, 10.0)
    thresholds: ClassVar[tuple[str, ...]] = ("least",)
    needs_accelerator: ClassVar[bool] = True
    teaches: ClassVar[slice | None] = None

    def fit(self, batches, folder: Path) -> None:
        texts = [text for batch in batches for text in batch["positive"].to_pylist()]
        (folder / "sample").write_text("\n".join(texts))
        if self.log:
            Path(self.log).with_suffix(".fit").open("a").write(f"{len(texts)}\n")

    def score(self, batch, learnt):
        if self.sample_size:
            assert len((learnt.local() / "sample").read_text().splitlines()) == self.sample_size
        if self.log:
            with Path(self.log).open("a") as file:
                file.write(f"{len(batch)}\n")
        return digits(batch).astype(np.float32)[:, None]

    def decide(self, batch, score_NS, learnt):
        score_N = score_NS[:, 0]
        assert (digits(batch) == score_N).all()
        dropped = score_N < self.least
        return verdict(np.where(dropped, "low", ""), np.where(dropped, "too low", ""), score_N)


def digits(batch):
    return np.array([int(p.split()[2].rstrip(",")) % 10 for p in batch["positive"].to_pylist()])


@pytest.fixture
def sources(tmp_path):
    short = [{"query": "Hm?", "positive": f"It is {i}, of course, I should say."} for i in range(7)]
    return [
        write(tmp_path / "a.jsonl", [pair(i) for i in range(200)] + short),
        write(tmp_path / "b.jsonl", [pair(i) for i in range(100, 300)]),
        write(tmp_path / "triplets.jsonl", [triplet(i) for i in range(100)]),
    ]


def lengths(**bounds):
    texts = {"query": ["abc de", "äöü", "x y z"], "positive": ["p", "pp pp", "p  p"]}
    found = LengthFilter(LengthConfig(**bounds))(pa.RecordBatch.from_pydict(texts))
    return found.reason_N.tolist(), found.detail_N.tolist()


def test_lengths_count_characters_and_words_of_each_text():
    assert lengths() == ([""] * 3, [""] * 3)
    reasons, details = lengths(min_characters=3, min_words=2)
    assert reasons == ["too_short", "too_short", ""]
    assert details[0] == "positive of 1 characters, at least 3 wanted"
    assert details[1] == "query of 1 words, at least 2 wanted"
    reasons, details = lengths(max_characters=5, max_words=2)
    assert reasons == ["too_long", "", "too_long"]
    assert details[0] == "query of 6 characters, at most 5 wanted"
    assert details[2] == "query of 3 words, at most 2 wanted"


def test_a_filter_leaves_counts_in_the_manifest_and_rows_in_the_ledger(sources, tmp_path):
    out = tmp_path / "out"
    manifest = run(config(*sources, lengths=LengthConfig(min_characters=4)), out)
    a, b, triplets = manifest.sources
    assert a.stages == (StageCounts("lengths", 207, {"too_short": 7}, None),)
    assert b.stages == (StageCounts("lengths", 100, {}, None),)
    # Filters of pairs pass triplets by, and none of their records is counted.
    assert triplets.stages == (StageCounts("lengths", 0, {}, None),)
    assert a.dropped["too_short"] == 7 == ledger_counts(out)[("a", "too_short")]
    for source in manifest.sources:
        lost = sum(source.bad.values()) + sum(source.dropped.values())
        assert source.read == source.train + source.eval + lost
    (lost, *_) = ledger_samples(out, reason="too_short")
    assert (lost.stage, lost.query, lost.score) == ("lengths", "Hm?", None)
    assert lost.detail == "query of 3 characters, at least 4 wanted"
    assert load_manifest(out) == manifest


@pytest.fixture
def log(tmp_path):
    return tmp_path / "log"


def scored_rows(log):
    rows = sum(map(int, log.read_text().split())) if log.exists() else 0
    log.unlink(missing_ok=True)
    return rows


class TestScorer:
    def test_scores_are_in_ledger_and_histogram(self, sources, tmp_path):
        manifest = run(config(*sources), tmp_path / "out", scorers=[LastDigit(3.0)])
        _, b, triplets = manifest.sources
        assert b.stages[0].dropped == {"low": 30}
        lost = ledger_samples(tmp_path / "out", source="b", reason="low", most=99)
        assert sorted({row.score for row in lost}) == [0.0, 1.0, 2.0] and len(lost) == 30
        assert {row.stage for row in lost} == {"digit"}
        histograms = score_histograms(manifest)
        assert set(histograms) == {("a", "digit"), ("b", "digit")}
        kept, dropped = histograms["b", "digit"].kept, histograms["b", "digit"].dropped
        assert (sum(kept), sum(dropped)) == (70, 30)
        # Ten digits in fifty bins of 0..10.
        assert [i for i, n in enumerate(kept) if n] == [15, 20, 25, 30, 35, 40, 45]
        assert [dropped[i] for i in (0, 5, 10)] == [10, 10, 10]
        assert triplets.train + triplets.eval <= 100 and triplets.stages[0].scores is None

    def test_another_threshold_uses_the_scores_again(self, sources, tmp_path, log):
        settings, scorer = config(*sources), LastDigit(3.0, str(log))
        run(settings, tmp_path / "out", scorers=[scorer])
        assert scored_rows(log) == 307
        (tmp_path / "out").rename(tmp_path / "old")
        manifest = run(settings, tmp_path / "out", scorers=[replace(scorer, least=5.0)])
        assert scored_rows(log) == 0
        assert manifest.sources[1].dropped["low"] == 50

    def test_another_threshold_is_another_preparation(self, sources, tmp_path):
        run(config(*sources), tmp_path / "out", scorers=[LastDigit(3.0)])
        with pytest.raises(UserError, match=r"digit: .* → "):
            run(config(*sources), tmp_path / "out", scorers=[LastDigit(5.0)])

    @pytest.fixture
    def scored(self, sources, tmp_path, log):
        """Prepares into one work folder; gives the manifest and what was scored and learnt anew."""

        def prepared(out, *files, **more):
            scorer = LastDigit(3.0, str(log))
            engine = EngineConfig("local", 1, work_dir=str(tmp_path / "work"))
            manifest = run(config(*files, engine=engine, **more), tmp_path / out, scorers=[scorer])
            return manifest, scored_rows(log), scored_rows(log.with_suffix(".fit"))

        _, rows, learnt = prepared("first", *sources)
        assert (rows, learnt) == (307, 40)
        return prepared

    def test_a_record_is_scored_once_whatever_else_changes(self, sources, tmp_path, scored):
        assert scored("seed", *sources, seed=7)[1:] == (0, 0)
        assert scored("filter", *sources, lengths=LengthConfig(max_words=99))[1:] == (0, 0)
        assert scored("strict", *sources, lengths=LengthConfig(min_characters=4))[1:] == (0, 0)
        other = write(tmp_path / "c.jsonl", [pair(i) for i in range(1000, 1090)])
        manifest, rows, learnt = scored("more", other, *sources)
        assert (rows, learnt) == (90, 20)
        assert manifest.sources[2].stages[0].dropped == {"low": 30}
        # And once more, of both seeds: the new ones of each are found by the other.
        assert scored("both", other, *sources, seed=7)[1:] == (0, 0)
        kept = list((tmp_path / "work" / "scores").rglob("*.arrow"))
        assert len(kept) <= 30

    def test_scores_found_are_those_of_their_records(self, sources, tmp_path, scored, log):
        """`decide` compares each with the record; here all decisions, and what is taught."""
        found, _, _ = scored("found", *sources, seed=7)
        alone = run(
            config(*sources, seed=7), tmp_path / "alone", scorers=[LastDigit(3.0, str(log))]
        )
        assert [s.stages for s in found.sources] == [s.stages for s in alone.sources]

    def test_a_text_that_differs_in_case_alone_is_scored_again(self, sources, tmp_path, scored):
        rows = [pair(i) for i in range(100, 300)]
        sample = {
            line
            for path in (tmp_path / "work").glob("digit-learnt/*/*/sample")
            for line in path.read_text().splitlines()
        }
        (number,) = [i for i in range(299, 0, -1) if rows[i - 100]["positive"] not in sample][:1]
        shouted = rows[number - 100]["positive"].replace("course", "COURSE")
        rows[number - 100] = rows[number - 100] | {"positive": shouted}
        (tmp_path / "other").mkdir()
        b = write(tmp_path / "other" / "b.jsonl", rows)
        assert scored("shouted", sources[0], b, sources[2])[1:] == (1, 0)

    def test_what_was_scored_before_a_kill_is_found(self, sources, tmp_path, scored):
        work = tmp_path / "work"
        for folder in ("done/digit-score", "digit-scores"):
            shutil.rmtree(work / folder)
        assert scored("again", *sources)[1:] == (0, 0)

    def test_how_tasks_are_cut_changes_no_byte(self, sources, tmp_path, monkeypatch):
        settings = config(*sources, records_per_shard=20)
        run(settings, tmp_path / "out", scorers=[LastDigit(3.0)])
        monkeypatch.setattr(scoring, "TASK_ROWS", 37)
        monkeypatch.setattr(scoring, "BLOCK_ROWS", 5)
        run(settings, tmp_path / "cut", scorers=[LastDigit(3.0)])
        assert files(tmp_path / "out") == files(tmp_path / "cut")

    def test_the_number_of_workers_changes_no_byte(self, sources, tmp_path):
        for workers in (1, 2):
            settings = config(*sources, engine=EngineConfig("local", workers))
            settings = replace(settings, lengths=LengthConfig(min_words=2))
            run(settings, tmp_path / f"out{workers}", scorers=[LastDigit(3.0)])
        assert files(tmp_path / "out1") == files(tmp_path / "out2")


def test_keys_of_filters_and_of_scores():
    a, b = LastDigit(1.0), LastDigit(2.0)
    assert filter_key(a) != filter_key(b) and score_key(a) == score_key(b)
    assert score_key(a) != score_key(LastDigit(1.0, "elsewhere"))
