import pytest

from jina_jax.data.workspace import workspace
from jina_jax.errors import UserError


def test_the_folder_appears_only_at_the_end(tmp_path):
    target = tmp_path / "new" / "data"
    with workspace(target) as folder:
        (folder / "file").write_text("x")
        assert not target.exists()
    assert (target / "file").read_text() == "x"
    assert list(target.parent.iterdir()) == [target]


def test_an_error_leaves_nothing(tmp_path):
    with pytest.raises(KeyError), workspace(tmp_path / "data") as folder:
        (folder / "file").write_text("x")
        raise KeyError
    assert list(tmp_path.iterdir()) == []


def test_two_at_once_are_refused_and_the_first_is_unharmed(tmp_path):
    with workspace(tmp_path / "data") as folder:
        (folder / "file").write_text("x")
        with pytest.raises(UserError, match="another process is preparing"):
            workspace(tmp_path / "data").__enter__()
        assert (folder / "file").exists()
    assert (tmp_path / "data" / "file").exists()


def test_a_folder_that_has_something_is_not_overwritten(tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "file").write_text("x")
    with pytest.raises(UserError, match="appeared meanwhile"), workspace(tmp_path / "data"):
        pass
    assert (tmp_path / "data" / "file").read_text() == "x"
