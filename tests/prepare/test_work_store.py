"""What a preparation leaves in its work store: another runs only what depends on what changed."""

import dataclasses

import pytest

from jina_jax.cli.main import main
from jina_jax.config import EngineConfig, LengthConfig
from jina_jax.errors import UserError
from jina_jax.prepare.run import clean
from tests.pairs import config, files, markers, pair, run, write


@pytest.fixture
def made(tmp_path):
    """A preparation and its settings."""
    source = write(tmp_path / "a.jsonl", [pair(i) for i in range(250)])
    settings = config(source, lengths=LengthConfig(max_words=20))
    run(settings, tmp_path / "out")
    return settings, tmp_path / "out"


def ran(work, before):
    """Stage → tasks that ran since."""
    found = {}
    for name, time_ns in markers(work).items():
        if before.get(name) != time_ns:
            stage = name.split("/")[0]
            found[stage] = found.get(stage, 0) + 1
    return found


def again(settings, out, before=None):
    """What runs when the folder is made anew."""
    work = out.with_name("out.work")
    before = markers(work)
    out.rename(out.with_name(f"old-{len(list(out.parent.iterdir()))}"))
    run(settings, out)
    return ran(work, before)


def test_the_same_runs_nothing(made):
    settings, out = made
    expected = files(out)
    assert again(settings, out) == {}
    assert files(out) == expected


def test_a_threshold_reruns_its_filter_and_what_comes_after(made):
    settings, out = made
    first = markers(out.with_name("out.work"))
    changed = dataclasses.replace(settings, lengths=LengthConfig(max_words=6))
    found = again(changed, out)
    assert found.keys() == {"lengths", "held-out", "split", "vocabulary", "encode", "ledger"}
    parts = sum(name.startswith("dedup/") for name in first)
    assert found["lengths"] == found["split"] == parts
    run(changed, out.with_name("afresh"))
    assert files(out) == files(out.with_name("afresh"))
    # The first is all there still.
    assert again(settings, out) == {}


def test_what_changes_no_record_reruns_the_shards_alone(made):
    settings, out = made
    found = again(dataclasses.replace(settings, max_text_tokens=6), out)
    assert found == {"encode": 3}


def test_a_source_that_is_added_is_all_that_is_read(made, tmp_path):
    settings, out = made
    other = write(tmp_path / "b.jsonl", [pair(i) for i in range(1000, 1100)])
    # Before the first, so that all numbers of sources change.
    added = config(other, tmp_path / "a.jsonl", lengths=settings.lengths)
    found = again(added, out)
    assert found["read"] == found["digest"] == 1
    run(added, tmp_path / "afresh")
    assert files(out) == files(tmp_path / "afresh")


def test_an_error_keeps_what_was_done(made, tmp_path):
    settings, out = made
    nothing = write(tmp_path / "b.jsonl", [pair(3)])
    with pytest.raises(UserError, match="'b': nothing is left"):
        again(config(tmp_path / "a.jsonl", nothing, lengths=settings.lengths), out)
    run(settings, out)
    before = markers(tmp_path / "out.work")
    assert again(settings, out) == {}
    assert before.items() == markers(tmp_path / "out.work").items()


def test_a_shard_that_was_damaged_through_its_folder_is_made_anew(made, capsys):
    settings, out = made
    expected = files(out)
    shard = next((out / "train").iterdir())
    assert shard.stat().st_nlink == 2
    content = bytearray(shard.read_bytes())
    content[-100] ^= 1
    shard.write_bytes(content)
    assert again(settings, out) == {"encode": 1}
    assert files(out) == expected


def test_clean_removes_the_work_and_nothing_else(made, capsys):
    settings, out = made
    expected = files(out)
    clean(settings, out)
    assert sorted(path.name for path in out.parent.iterdir()) == ["a.jsonl", "out"]
    assert files(out) == expected
    clean(settings, out)
    said = capsys.readouterr().err
    assert "removed " in said and "out.work is not there, or is none of prepare's" in said


def test_a_folder_that_holds_something_else_is_no_work_store(made, tmp_path):
    settings, _ = made
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "thesis.txt").write_text("precious")
    there = dataclasses.replace(settings, engine=EngineConfig(work_dir=str(tmp_path / "home")))
    with pytest.raises(UserError, match=r"home holds something else: give an empty .*work_dir"):
        run(there, tmp_path / "new")
    clean(there, tmp_path / "new")
    assert (tmp_path / "home" / "thesis.txt").read_text() == "precious"
    for inner in ("new", "new/work", "."):
        engine = EngineConfig(work_dir=str(tmp_path / inner))
        with pytest.raises(UserError, match="lie one in the other"):
            run(dataclasses.replace(settings, engine=engine), tmp_path / "new")


CONFIG = """
from jina_jax.config import RunConfig
from tests.pairs import config
from pathlib import Path


def get_config():
    return RunConfig("r", workdir={folder!r}, data=config(Path({source!r}), eval_pairs=5))
"""


def test_the_command_line_cleans(tmp_path, capsys):
    source = write(tmp_path / "a.jsonl", [pair(i) for i in range(120)])
    file = tmp_path / "config.py"
    file.write_text(CONFIG.format(folder=str(tmp_path / "run"), source=str(source)))
    assert main(["prepare", str(file)]) == 0
    said = capsys.readouterr().err
    assert f"{tmp_path}/run/data.work (0.00 GB) stays" in said and "--clean` removes it" in said
    assert main(["prepare", str(file), "--clean"]) == 0
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == ["data"]
