"""`prepare --plan` of sources that are at hand, and of such that are not."""

import gzip
from dataclasses import replace

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jina_jax.config import (
    ConsistencyConfig,
    DecontaminationConfig,
    EngineConfig,
    EvaluationSet,
    SourceConfig,
    TokenizerConfig,
)
from jina_jax.config.forecast import ForecastOptions
from jina_jax.errors import UserError
from jina_jax.prepare.forecast import Forecast, StageForecast, forecast
from tests.pairs import config, pair, run, write

PAIRS = 6000
LARGER = replace(config(), tokenizer=TokenizerConfig("train", 300))
"""Made-up records have more characters than those of tests."""


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sources")
    plain = write(folder / "plain.jsonl", [pair(i) for i in range(PAIRS)])
    packed = folder / "packed.jsonl.gz"
    others = write(folder / "others.jsonl", [pair(i) for i in range(PAIRS, 2 * PAIRS)])
    packed.write_bytes(gzip.compress(others.read_bytes()))
    table = folder / "table.parquet"
    rows = [pair(i) for i in range(2 * PAIRS, 3 * PAIRS)]
    pq.write_table(pa.Table.from_pylist(rows), table)
    return tuple(
        SourceConfig(p.name.split(".")[0], paths=(str(p),)) for p in (plain, packed, table)
    )


def test_records_and_bytes_are_those_of_the_preparation(sources, tmp_path):
    """Not the time: this is no place to measure it."""
    settings = replace(
        config(), sources=sources, records_per_shard=1000, engine=EngineConfig("local", 1)
    )
    told = forecast(settings, ForecastOptions(sample_mb=0.5))
    seen, before = {}, [0]

    def watch(what, tasks, _):
        written = sum(p.stat().st_size for p in (tmp_path / "out.work").rglob("*") if p.is_file())
        seen[what], before[0] = (tasks, written - before[0]), written

    manifest = run(settings, tmp_path / "out", watch=watch)
    assert told.records == pytest.approx(3 * PAIRS, rel=0.1)
    assert told.trained == pytest.approx(manifest.train_records, rel=0.1)
    assert {stage.name for stage in told.stages} == set(seen)
    for stage in told.stages:
        if stage.name in ("read", "deduplicate", "tokenise"):
            assert stage.written_bytes == pytest.approx(seen[stage.name][1], rel=0.15), stage.name
    tasks = {stage.name: stage.tasks for stage in told.stages}
    assert tasks["read"] == seen["read"][0] == 3
    assert told.hours > 0 and not (tmp_path / "plan").exists()


def test_sources_that_are_not_at_hand_need_their_size(tmp_path):
    gone = SourceConfig("gone", paths=(str(tmp_path / "gone.jsonl"),))
    sets = (EvaluationSet("dev", (str(tmp_path / "dev.csv"),), "csv"),)
    settings = replace(
        LARGER,
        sources=(gone, replace(gone, name="two")),
        decontamination=DecontaminationConfig(sets),
    )
    with pytest.raises(UserError, match=r"'gone'.*matches no file.*give --pairs and --bytes-per-p"):
        forecast(settings, ForecastOptions())
    one = forecast(settings, ForecastOptions(pairs=1e6, sample_mb=0.2, kept=0.25))
    ten = forecast(settings, ForecastOptions(pairs=1e7, sample_mb=0.2, machines=4, cores=8))
    assert one.records == pytest.approx(1e6) and one.trained == pytest.approx(2.5e5)
    assert ten.written_bytes == pytest.approx(10 * one.written_bytes, rel=0.5)
    assert "without data.decontamination: dev is not at hand" in str(one)
    assert "on 4 machines of 8 cores" in str(ten)


def test_a_model_that_is_not_at_hand_needs_its_speed(tmp_path):
    gone = SourceConfig("gone", paths=(str(tmp_path / "gone.jsonl"),))
    model = ConsistencyConfig(enabled=True, model=str(tmp_path), sample_size=1000)
    settings = replace(LARGER, sources=(gone,), consistency=model)
    with pytest.raises(UserError, match=r"holds no model.*give --scored-per-s"):
        forecast(settings, ForecastOptions(pairs=1e4, sample_mb=0.1))
    options = ForecastOptions(pairs=1e4, sample_mb=0.1, scored_per_s=100, machines=2)
    (stage,) = (s for s in forecast(settings, options).stages if s.has_model)
    assert stage.core_s == pytest.approx((1e4 + 500) / 100)


def test_a_model_at_hand_is_measured(tmp_path, sentence_folder, sources):
    model = ConsistencyConfig(enabled=True, model=str(sentence_folder), sample_size=500)
    settings = replace(config(), sources=sources[:1], consistency=model)
    (stage,) = (s for s in forecast(settings, ForecastOptions(sample_mb=0.1)).stages if s.has_model)
    assert stage.name == "consistency (model)" and stage.core_s > 0


def test_no_more_tasks_run_at_once_than_there_are():
    stages = (
        StageForecast("a", 100, 0, 3e12, 7200.0),
        StageForecast("b", 1, 0, 0, 3600.0),
        StageForecast("c", 50, 0, 0, 3600.0, has_model=True),
    )
    options = ForecastOptions(machines=2, price_per_machine_hour=3)
    told = Forecast(options, 4, 1e9, 5e8, stages)
    assert [told.stage_hours(stage) for stage in stages] == [0.25, 1.0, 0.5]
    assert told.hours == 1.75 and "cost 10.50 at 3 a machine-hour" in str(told)
    assert "3 TB" in str(told)
