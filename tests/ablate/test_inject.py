import dataclasses
import json

import pytest

from jina_jax.ablate.noise import inject
from jina_jax.errors import UserError
from tests.ablate.sources import write_sources
from tests.pairs import pair


@pytest.fixture
def config(tmp_path):
    return write_sources(tmp_path)


def rows(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_what_is_planted_is_what_the_list_says(config, tmp_path):
    made = inject(config, tmp_path / "out", progress=False)
    pairs = rows(tmp_path / "out" / "pairs.jsonl")
    own = {pair(i)["query"]: pair(i)["positive"] for i in range(300)}
    found = {}
    for row, made_pair in enumerate(pairs, 1):
        query, passage = made_pair["query"], made_pair["positive"]
        if query not in own:
            assert "läuft" in query and "schläft" in passage
            found[row] = "foreign"
        elif own[query] != passage:
            assert passage in own.values()
            found[row] = "mismatched"
    assert made.planted == found
    counts = {"clean": 110, "mismatched": 60, "foreign": 30, "held_out": 40}
    assert made.counts == counts
    assert len(pairs) == 200
    planted = list(found.values())
    assert (planted.count("mismatched"), planted.count("foreign")) == (60, 30)
    assert list(found) != list(range(1, 91))  # spread over the file


def test_held_out_pairs_are_clean_and_in_no_training_pair(config, tmp_path):
    inject(config, tmp_path / "out", progress=False)
    held = rows(tmp_path / "out" / "held_out.jsonl")
    own = {pair(i)["query"]: pair(i)["positive"] for i in range(300)}
    assert all(own[p["query"]] == p["positive"] for p in held)
    used = {text for p in rows(tmp_path / "out" / "pairs.jsonl") for text in p.values()}
    assert len(held) == 40
    assert used.isdisjoint(text for p in held for text in p.values())


def test_no_text_is_in_two_pairs(config, tmp_path):
    path = tmp_path / "clean.jsonl"
    again = [{"query": pair(7)["query"].upper(), "positive": "Another passage."}]
    path.write_text(path.read_text() + "".join(json.dumps(p) + "\n" for p in again))
    inject(config, tmp_path / "out", progress=False)
    pairs = rows(tmp_path / "out" / "pairs.jsonl") + rows(tmp_path / "out" / "held_out.jsonl")
    texts = [text.lower() for p in pairs for text in p.values()]
    assert len(set(texts)) == len(texts)


def test_as_many_pairs_as_the_sources_have(config, tmp_path):
    # 260 clean ones are 85% of 305.
    made = inject(dataclasses.replace(config, pairs=None), tmp_path / "out", progress=False)
    assert made.counts == {"clean": 167, "mismatched": 92, "foreign": 46, "held_out": 40}


def test_the_seed_decides_and_the_same_again_is_kept(config, tmp_path):
    first = inject(config, tmp_path / "out", progress=False)
    before = {p.name: p.stat().st_mtime_ns for p in (tmp_path / "out").iterdir()}
    assert inject(config, tmp_path / "out", progress=False) == first
    assert {p.name: p.stat().st_mtime_ns for p in (tmp_path / "out").iterdir()} == before
    inject(config, tmp_path / "again", progress=False)
    other = inject(dataclasses.replace(config, seed=1), tmp_path / "other", progress=False)
    files = [(tmp_path / d / "pairs.jsonl").read_bytes() for d in ("out", "again", "other")]
    assert files[0] == files[1] != files[2]
    assert other.planted != first.planted
    with pytest.raises(UserError, match="made with another injection"):
        inject(dataclasses.replace(config, seed=1), tmp_path / "out", progress=False)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"pairs": 400}, "at most 305 training pairs"),
        ({"held_out": 299}, "beside the 299 held out"),
        ({"foreign_paths": ("nowhere.jsonl",)}, "'nowhere.jsonl' matches no file"),
        ({"foreign_field": "body"}, "set injection.language_field and injection.foreign_field"),
    ],
)
def test_what_cannot_be_made_is_explained(config, tmp_path, change, message):
    with pytest.raises(UserError, match=message):
        inject(dataclasses.replace(config, **change), tmp_path / "out", progress=False)
    assert not (tmp_path / "out").exists()
