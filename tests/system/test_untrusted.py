"""Paths and JSON that others wrote."""

import pytest

from jina_jax.errors import UserError
from jina_jax.system.untrusted import inner_path, parse_json, read_json


@pytest.mark.parametrize("name", ["", "/etc/passwd", "../x", "a/../../x", "a\0b", "..", "a\\..\\b"])
def test_names_that_lead_elsewhere(tmp_path, name):
    with pytest.raises(UserError, match="is no path within"):
        inner_path(tmp_path, name)


def test_a_circle_of_links_is_refused(tmp_path):
    (tmp_path / "a").symlink_to(tmp_path / "b")
    (tmp_path / "b").symlink_to(tmp_path / "a")
    with pytest.raises(UserError):
        read_json(inner_path(tmp_path, "a"))


@pytest.mark.parametrize(
    "text", ["NaN", "[-Infinity]", "1e999", '{"a": {"b": 1, "b": 1}}', "1" * 5000]
)
def test_json_that_is_none(text):
    with pytest.raises(ValueError):
        parse_json(text)


def test_an_own_run_may_have_an_infinite_setting():
    assert parse_json('{"clip_norm": Infinity}', finite=False) == {"clip_norm": float("inf")}
