"""A short look with the fuzzer; `python -m tests.fuzz` is the long one."""

import random
from pathlib import Path

import pytest

from tests.fuzz.__main__ import fuzz_blindly, read
from tests.fuzz.corpus import corpus
from tests.fuzz.mutation import change_bytes, mutated
from tests.fuzz.targets import TARGETS, empty, run


@pytest.mark.parametrize("target", TARGETS)
def test_readers_raise_nothing_but_user_errors(target, tmp_path):
    done = fuzz_blindly(target, 0.7, 0, tmp_path)
    assert done.executions > 0
    assert not done.findings, "\n".join(p.read_text() for p in tmp_path.glob("*.txt"))


@pytest.mark.parametrize("target", TARGETS)
def test_the_corpus_is_valid_as_it_is(target, tmp_path):
    """Else the fuzzer would look at nothing but the first refusal."""
    (tmp_path / "made").mkdir()
    (tmp_path / "read").mkdir()
    for data in corpus(tmp_path / "made")[target]:
        TARGETS[target](tmp_path / "read", data)
        empty(tmp_path / "read")


@pytest.mark.parametrize(
    "found", sorted((Path(__file__).parent / "found").iterdir()), ids=lambda p: p.name
)
def test_what_was_found_stays_mended(found, tmp_path):
    """Files of found/ are named TARGET-WHAT."""
    run(found.name.partition("-")[0], tmp_path, found.read_bytes())


def test_a_reader_that_raises_something_else_is_a_finding(tmp_path, monkeypatch):
    def fails(folder, data):
        raise ZeroDivisionError

    monkeypatch.setitem(TARGETS, "answer", fails)
    (tmp_path / "read").mkdir()
    what = read("answer", tmp_path / "read", b"input", tmp_path)
    assert what.startswith("ZeroDivisionError at ")
    (kept,) = (p for p in tmp_path.glob("answer-*") if p.suffix != ".txt")
    assert kept.read_bytes() == b"input"


def test_mutations_follow_the_seed():
    data = b'{"a": [1, {"b": "c"}]}'

    def some(seed):
        rng = random.Random(seed)
        return [mutated(data, "run", rng, lambda d: change_bytes(d, rng)) for _ in range(20)]

    assert some(3) == some(3)
    assert len(set(some(3))) > 10
