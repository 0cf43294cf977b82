"""Types and bounds of single fields, as they are declared."""

from dataclasses import replace

import pytest

from jina_jax.cli.main import main
from jina_jax.config import (
    AlarmConfig,
    DataConfig,
    LossConfig,
    MixtureConfig,
    RunConfig,
    SourceConfig,
    StsSet,
)
from jina_jax.config.fields import field_problems
from jina_jax.config.files import unchangeable_fields


def problems(config):
    return list(field_problems(config))


def test_ends_of_a_range_belong_to_it_or_not_as_declared():
    assert problems(LossConfig(margin=2.0)) == problems(LossConfig(query_weight=0.0)) == []
    assert problems(LossConfig(margin=2.5)) == ["margin=2.5 must be less than or equal to 2"]
    assert problems(LossConfig(margin=-0.1)) == ["margin=-0.1 must be greater than or equal to 0"]
    assert problems(LossConfig(temperature=0.0)) == ["temperature=0.0 must be greater than 0"]


def test_none_is_no_number_out_of_range():
    assert problems(MixtureConfig()) == problems(SourceConfig("a")) == []
    assert problems(MixtureConfig(temperature=1.0, size_limit=0)) == [
        "size_limit=0 must be greater than 0"
    ]
    assert problems(SourceConfig("a", weight=-1.0)) == ["weight=-1.0 must be greater than 0"]


def test_all_that_is_wrong_is_named_by_its_path():
    config = RunConfig("a", alarms=AlarmConfig(lines=-1, alike=1.5))
    feed = replace(config.feed, global_batch_size="32", rows_multiple=1.5)
    evaluate = replace(config.evaluate, sts=(StsSet("s", ("f",), kind="xml"),))
    found = problems(replace(config, feed=feed, evaluate=evaluate, mesh=3))
    assert [p.partition("=")[0] for p in found] == [
        "feed.global_batch_size", "feed.rows_multiple", "mesh", "alarms.lines", "alarms.alike",
        "evaluate.sts.0.kind",
    ]  # fmt: skip
    assert found[0] == "feed.global_batch_size='32' must be a valid integer"
    assert found[-1].endswith("'parquet', 'arrow', 'csv', 'tsv' or 'text'")


@pytest.mark.parametrize("verb", ["show-config", "prepare", "train"])
def test_a_wrong_type_in_a_file_is_named(verb, tmp_path, capsys):
    path = tmp_path / "mine.py"
    path.write_text(
        "from jina_jax.config import FeedConfig, RunConfig\n"
        "def get_config():\n"
        "    return RunConfig('mine', feed=FeedConfig(global_batch_size='32'))\n"
    )
    assert main([verb, str(path)]) == 2
    said = capsys.readouterr().err
    assert f"{path} cannot be used" in said
    assert "feed.global_batch_size='32' must be a valid integer" in said


def test_a_format_is_compared_as_the_endings_name_it():
    def kinds(*sources):
        fields = unchangeable_fields(DataConfig(sources=sources))
        return [source["kind"] for source in fields["sources"]]

    assert kinds(SourceConfig("a", paths=("a-*.jsonl", "b.jsonl.gz"))) == ["jsonl"]
    assert kinds(SourceConfig("a", "jsonl", ("a.jsonl",))) == ["jsonl"]
    assert kinds(SourceConfig("a", paths=("a.csv", "b.tsv"))) == ["auto"]
    assert kinds(SourceConfig("a", paths=("folder",))) == kinds(SourceConfig("a")) == ["auto"]
