import pytest

from jina_jax.errors import UserError
from jina_jax.system.workspace import check_writable, discard_leftovers, workspace


def test_the_folder_appears_only_at_the_end(tmp_path):
    target = tmp_path / "new" / "data"
    with workspace(target, "a") as space:
        (space.result / "file").write_text("x")
        (space.work / "scratch").write_text("y")
        assert not target.exists()
    assert [p.name for p in target.iterdir()] == ["file"]
    assert list(target.parent.iterdir()) == [target]


def interrupted(target, error, *, finished):
    with pytest.raises(error), workspace(target, "a") as space:
        (space.work / "scratch").write_text("x")
        if finished:
            (space.markers / "task.json").write_text("{}")
        raise error


@pytest.mark.parametrize("error", [KeyError, UserError])
def test_nothing_stays_of_what_was_not_begun(tmp_path, error):
    interrupted(tmp_path / "data", error, finished=False)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("error", [KeyError, UserError, KeyboardInterrupt])
def test_what_is_finished_stays_for_who_makes_the_same(tmp_path, error):
    interrupted(tmp_path / "data", error, finished=True)
    with pytest.raises(ZeroDivisionError), workspace(tmp_path / "data", "a") as space:
        assert (space.work / "scratch").read_text() == "x"
        raise ZeroDivisionError
    with workspace(tmp_path / "data", "b") as space:
        assert list(space.work.iterdir()) == list(space.markers.iterdir()) == []


def test_what_a_kill_left_after_the_end_is_removed(tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / ".data.partial" / "work").mkdir(parents=True)
    discard_leftovers(tmp_path / "data")
    assert [p.name for p in tmp_path.iterdir()] == ["data"]


def test_two_at_once_are_refused_and_the_first_is_unharmed(tmp_path):
    with workspace(tmp_path / "data", "a") as space:
        (space.result / "file").write_text("x")
        with pytest.raises(UserError, match="another process is making"):
            workspace(tmp_path / "data", "a").__enter__()
        assert (space.result / "file").exists()
    assert (tmp_path / "data" / "file").exists()


def test_a_folder_that_has_something_is_not_overwritten(tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "file").write_text("x")
    with pytest.raises(UserError, match="appeared meanwhile"), workspace(tmp_path / "data", "a"):
        pass
    assert (tmp_path / "data" / "file").read_text() == "x"


def test_a_folder_below_a_file_is_refused(tmp_path):
    (tmp_path / "file").write_text("x")
    check_writable(tmp_path / "new" / "folder")
    with pytest.raises(UserError, match="file is a file"):
        check_writable(tmp_path / "file" / "folder")
    assert [p.name for p in tmp_path.iterdir()] == ["file"]
