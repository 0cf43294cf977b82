"""Whatever a configuration holds comes back from its file, and from the command line."""

import dataclasses
import json
import types
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Literal, Union, get_args, get_origin, get_type_hints

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jina_jax.cli.arguments import parse
from jina_jax.config import DistributedConfig, RunConfig
from jina_jax.config.files import RUN_FILE, read_run, to_json, unchangeable_fields
from jina_jax.errors import UserError

PLAIN = {
    bool: st.booleans(),
    int: st.integers(),
    float: st.floats(allow_nan=False),
    str: st.text(max_size=8),
}


def values(kind):
    """Any value of a field's type."""
    if kind in PLAIN:
        return PLAIN[kind]
    if dataclasses.is_dataclass(kind):
        hints = get_type_hints(kind, include_extras=True)
        fields = {f.name: values(hints[f.name]) for f in dataclasses.fields(kind)}
        return st.builds(kind, **fields)
    origin, arguments = get_origin(kind), get_args(kind)
    if origin is Literal:
        return st.sampled_from(arguments)
    if origin is Annotated:
        # Within its bounds, where it has any.
        return st.from_type(kind) if arguments[0] in PLAIN else values(arguments[0])
    if origin in (types.UnionType, Union):
        return st.one_of(st.none() if a is type(None) else values(a) for a in arguments)
    assert origin is tuple, kind
    if arguments[-1] is Ellipsis:
        return st.lists(values(arguments[0]), max_size=2).map(tuple)
    return st.tuples(*map(values, arguments))


@settings(deadline=None, max_examples=60)
@given(values(RunConfig))
def test_a_file_gives_back_what_was_written(config):
    with TemporaryDirectory() as folder:
        (Path(folder) / RUN_FILE).write_text(to_json(config), encoding="utf-8")
        read = read_run(Path(folder))
    # Of the folder it lies in, and for one process.
    config = dataclasses.replace(config, distributed=DistributedConfig())
    assert read == dataclasses.replace(config, workdir=str(Path(folder).absolute()))
    assert to_json(dataclasses.replace(read, workdir=config.workdir)) == to_json(config)


@settings(deadline=None, max_examples=60)
@given(values(RunConfig))
def test_the_fields_that_decide_a_result_are_json(config):
    fields = unchangeable_fields(config)
    assert json.loads(json.dumps(fields)) == fields


def flags(config, path=""):
    """Every field with a plain value, as the command line names it."""
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        name = f"{path}{field.name}"
        if dataclasses.is_dataclass(value):
            yield from flags(value, f"{name}.")
        elif type(value) in (int, float):
            yield name, type(value)


FLAGS = list(flags(RunConfig("a")))


@settings(deadline=None, max_examples=8)
@given(st.data())
def test_the_command_line_sets_any_number_and_nothing_else(data):
    name, kind = data.draw(st.sampled_from(FLAGS))
    value = data.draw(st.integers(0, 10**9) if kind is int else st.floats(0, 1e9))
    before = RunConfig("a")
    args = ["a", f"--{name.replace('_', '-')}={value!r}"]
    now = parse("train", "", args, RunConfig, lambda c: c, load=lambda _: before)
    changed = {
        path
        for (path, was), (_, found) in zip(leaves(before), leaves(now))
        if was != found and path != name
    }
    assert dict(leaves(now))[name] == value and not changed


def leaves(config, path=""):
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if dataclasses.is_dataclass(value):
            yield from leaves(value, f"{path}{field.name}.")
        else:
            yield f"{path}{field.name}", value


@given(st.recursive(st.none() | st.booleans() | st.floats() | st.text(), st.lists, max_leaves=5))
def test_what_is_no_configuration_is_refused(value):
    with TemporaryDirectory() as folder:
        (Path(folder) / RUN_FILE).write_text(json.dumps(value), encoding="utf-8")
        with pytest.raises(UserError, match=RUN_FILE):
            read_run(Path(folder))
