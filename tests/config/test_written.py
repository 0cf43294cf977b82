"""Configurations as the Python files that give them."""

import dataclasses

import pytest

from jina_jax.config import ConsistencyConfig, DataConfig, PromptConfig, RunConfig, SourceConfig
from jina_jax.config.files import config_names, load_config, load_phases
from jina_jax.config.run import MixtureConfig
from jina_jax.config.source import StageConfig
from jina_jax.config.written import to_python
from jina_jax.errors import UserError


def shipped():
    for name in config_names():
        try:
            yield from load_phases(name)
        except UserError:
            continue  # An ablation.


OTHER = RunConfig(
    "other",
    model="a/model",
    data=DataConfig(
        (
            SourceConfig("a", paths=('with "quotes".jsonl', "b.csv"), weight=0.5),
            SourceConfig("b", "pydocs"),
        ),
        prompts=PromptConfig((("query", "query: "), ("é", "line\n")), "query"),
        consistency=ConsistencyConfig(enabled=True),
    ),
    mixture=MixtureConfig(stages=(StageConfig(0, (("a", 1.0),)), StageConfig(5, (("b", 2.0),)))),
)


@pytest.mark.parametrize("config", [OTHER, *shipped()], ids=lambda config: config.name)
def test_a_written_config_is_read_as_it_was(config, tmp_path):
    path = tmp_path / "written.py"
    path.write_text(to_python(config, "A title."))
    read = load_config(str(path))
    assert dataclasses.asdict(read) == dataclasses.asdict(config)
    assert max(map(len, path.read_text().splitlines())) <= 100


def test_reasons_stand_before_their_fields():
    text = to_python(OTHER, "A title.", {"data.sources.1.kind": "the docs", "model": "a good one"})
    lines = [line.strip() for line in text.splitlines()]
    assert lines[lines.index("# the docs") + 1] == 'kind="pydocs",'
    assert lines[lines.index("# a good one") + 1] == 'model="a/model",'
    assert lines[0] == '"""A title."""'
