import pytest

from jina_jax.data.prepare import prepare
from tests.prepared import CONFIG_FILE, STEPS, tiny_config, write_jsonl
from tests.trainer import curve, finish, start


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    """A prepared folder and a config file beside it."""
    folder = tmp_path_factory.mktemp("trainer")
    write_jsonl(folder)
    prepare(tiny_config(str(folder)).data, folder / "data", progress=False)
    (folder / "config.py").write_text(CONFIG_FILE.format(folder=str(folder)))
    return folder


@pytest.fixture(scope="session")
def uninterrupted(folder):
    """The curve of a trainer on two devices that was left in peace."""
    finish(start(folder, "whole"))
    found = curve(folder, "whole")
    assert [step for step, *_ in found] == list(range(1, STEPS + 1))
    return found
