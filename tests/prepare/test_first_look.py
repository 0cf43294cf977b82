"""What is wrong with any source is told before a stage runs."""

import dataclasses

import pyarrow.parquet as pq
import pytest

from jina_jax import api
from jina_jax.config import FeedConfig, MixtureConfig, RunConfig, SourceConfig, StageConfig
from jina_jax.errors import UserError
from jina_jax.prepare.first_look import records_needed
from jina_jax.prepare.run import prepare
from tests.pairs import config, markers, pair, run, write


def good(folder, name="good.jsonl", numbers=range(300)):
    return write(folder / name, [pair(i) for i in numbers])


def stages(out):
    """Stages with a finished task."""
    return {name.split("/")[0] for name in markers(out.with_name(f"{out.name}.work"))}


def test_a_later_source_with_bad_records_ends_before_the_first_is_read(tmp_path):
    bad = write(tmp_path / "bad.jsonl", [pair(i) for i in range(90)] + ["{"] * 10)
    with pytest.raises(UserError, match="'bad': 10 of the first 100 records") as told:
        run(config(good(tmp_path), bad, max_bad_share=0.05), tmp_path / "out")
    assert stages(tmp_path / "out") == {"ledger"}
    # Each of them is in the ledger that the error names.
    rejected = tmp_path / "out.rejected"
    assert str(rejected) in str(told.value)
    (file,) = rejected.iterdir()
    assert sorted(pq.read_table(file).column("row").to_pylist()) == list(range(91, 101))


def test_bad_records_beyond_the_first_are_told_when_they_are_read(tmp_path):
    records = [pair(i) for i in range(1000)] + ["{"] * 400
    late = write(tmp_path / "late.jsonl", records)
    with pytest.raises(UserError, match="251 of the first 1,251 records"):
        run(config(late, max_bad_share=0.2), tmp_path / "out")
    assert "digest" in stages(tmp_path / "out")


def test_an_empty_source_is_told_first(tmp_path):
    empty = write(tmp_path / "empty.jsonl", [])
    with pytest.raises(UserError, match=r"'empty' is empty: no record in .*empty\.jsonl"):
        run(config(good(tmp_path), empty), tmp_path / "out")
    assert not stages(tmp_path / "out")


def of_run(tmp_path, *sources, batch=64, **more):
    data = config(*sources, eval_pairs=0)
    feed = FeedConfig(global_batch_size=batch)
    return RunConfig("r", workdir=str(tmp_path / "run"), data=data, feed=feed, **more)


def test_a_source_shorter_than_a_batch_is_refused_before_anything_is_read(tmp_path):
    few = good(tmp_path, "few.jsonl", range(300, 363))
    settings = of_run(tmp_path, good(tmp_path), few)
    with pytest.raises(
        UserError, match=r"'few' has 63 records, of which no batch can be made.* 64"
    ):
        api.prepare(settings)
    assert not stages(tmp_path / "run" / "data")
    api.prepare(dataclasses.replace(settings, feed=FeedConfig(global_batch_size=63)))


def test_what_is_left_too_short_is_said_at_the_end(tmp_path, capsys):
    twice = write(tmp_path / "twice.jsonl", [pair(i) for i in range(60)] * 2)
    prepare(config(twice, eval_pairs=0), tmp_path / "out", needed={"twice": 64})
    said = capsys.readouterr().err
    assert "'twice': 60 training records are left, and a batch needs 64" in said


def test_a_source_that_is_never_drawn_is_told_and_needs_no_batch(tmp_path, capsys):
    few = good(tmp_path, "few.jsonl", range(300, 320))
    weights = (StageConfig(0, (("few", 0.0),)), StageConfig(10, (("good", 2.0),)))
    api.prepare(of_run(tmp_path, good(tmp_path), few, mixture=MixtureConfig(stages=weights)))
    assert "source 'few' has weight 0 throughout" in capsys.readouterr().err


def test_records_needed():
    def of(*stages, **source):
        data = dataclasses.replace(config(), sources=(SourceConfig("a", **source),))
        mixture = MixtureConfig(stages=stages)
        run = RunConfig("r", data=data, mixture=mixture, feed=FeedConfig(global_batch_size=10))
        return records_needed(run)["a"]

    zero, later = StageConfig(0, (("a", 0.0),)), StageConfig(5, (("a", 1.0),))
    assert of() == of(max_epochs=2.0) == of(StageConfig(3, (("a", 0.0),))) == of(zero, later) == 10
    assert of(max_epochs=0.3) == 34
    assert of(zero) == of(zero, StageConfig(9, (("a", 0.0),))) == 0
