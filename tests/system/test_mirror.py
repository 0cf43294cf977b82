"""A run folder at a URL and this machine's copy: files go there whole, and come from there."""

import itertools
import time

import pytest
from filelock import FileLock

from jina_jax.errors import Unreachable
from jina_jax.system import mirror as mirrors
from jina_jax.system import objects
from jina_jax.system.mirror import TRAINER_LOCK, Mirror, mirrored, open_mirror, url_of
from tests.mirrors import mirror_of_memory

_NUMBERS = itertools.count()


@pytest.fixture
def run(tmp_path, monkeypatch):
    with mirror_of_memory(tmp_path / "here", monkeypatch) as mirror:
        yield mirror


def write(mirror, name, content):
    path = mirror.folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


def there(mirror, name):
    return objects.read_object(f"{mirror.url}/{name}")


def test_what_changes_is_sent_and_what_is_gone_goes(run):
    write(run, "config.json", b"{}")
    write(run, "tokenizer/tokenizer.json", b"t")
    write(run, "checkpoints/saving-3/params.0.1", b"apart")
    write(run, "compiled/program", b"apart")
    run.send()
    names = {"config.json", "tokenizer/tokenizer.json", "run-id"}
    assert objects.list_objects(run.url).keys() == names
    write(run, "config.json", b"{ }")
    (run.folder / "tokenizer/tokenizer.json").unlink()
    run.send()
    assert there(run, "config.json") == b"{ }" and not there(run, "tokenizer/tokenizer.json")


def test_half_a_line_is_not_sent(run):
    write(run, "metrics.jsonl", b'{"step": 1}\n{"st')
    run.send()
    assert there(run, "metrics.jsonl") == b'{"step": 1}\n'
    write(run, "metrics.jsonl", b'{"step": 1}\n{"step": 2}\n')
    run.send()
    assert there(run, "metrics.jsonl") == b'{"step": 1}\n{"step": 2}\n'


def test_another_machine_gets_the_small_files_and_no_older_ones_stay(run, tmp_path):
    for name in ("config.json", "tokenizer/t", "tensorboard/events", "export/model.safetensors"):
        write(run, name, name.encode())
    run.send()
    other = open_mirror(run.url, tmp_path / "other")
    found = {p.relative_to(other.folder).as_posix() for p in other.folder.rglob("*")}
    assert {n for n in found if not n.startswith(".")} == {
        "config.json",
        "tokenizer",
        "tokenizer/t",
    }
    assert url_of(other.folder) == run.url and url_of(tmp_path) == ""
    (run.folder / "config.json").unlink()
    run.send()
    assert not (open_mirror(run.url, tmp_path / "other").folder / "config.json").exists()


def test_files_of_a_machine_that_trains_are_not_replaced(run):
    write(run, "metrics.jsonl", b'{"step": 1}\n')
    run.send()
    write(run, "metrics.jsonl", b'{"step": 1}\n{"step": 2}\n')
    with FileLock(run.folder / TRAINER_LOCK):
        open_mirror(run.url, run.folder)
        assert (run.folder / "metrics.jsonl").read_bytes().count(b"\n") == 2
    open_mirror(run.url, run.folder)
    assert (run.folder / "metrics.jsonl").read_bytes().count(b"\n") == 1


def test_an_export_has_its_config_last_and_keeps_nothing_older(run, monkeypatch):
    order = []
    put, remove = objects._put, objects._remove
    monkeypatch.setattr(objects, "_put", lambda c, u: (order.append(u), put(c, u)))
    monkeypatch.setattr(objects, "_remove", lambda u: (order.append(f"-{u}"), remove(u)))
    for name in ("config.json", "model.safetensors", "onnx.bin"):
        write(run, f"export/{name}", b"1")
    run.send()
    assert order[0] == f"-{run.url}/export/config.json"
    assert order[-1] == f"{run.url}/export/config.json" and len(order) == 4
    order.clear()
    # Elsewhere, where the old export never came.
    (run.folder / "export/onnx.bin").unlink()
    write(run, "export/config.json", b"2")
    write(run, "export/model.safetensors", b"2")
    run._known.clear()
    run.send()
    assert order[0] == f"-{run.url}/export/config.json"
    assert there(run, "export/config.json") == b"2" and not there(run, "export/onnx.bin")


def test_it_sends_by_itself_and_goes_on_when_the_store_comes_back(run, monkeypatch, capsys):
    monkeypatch.setattr(mirrors, "_PAUSE_S", 0.02)
    put, is_away = objects._put, True

    def fails(content, url):
        if is_away:
            raise OSError("no answer")
        put(content, url)

    monkeypatch.setattr(objects, "_put", fails)
    with run:
        write(run, "metrics.jsonl", b'{"step": 1}\n')
        wait_for(lambda: "METRICS ARE BEHIND" in capsys.readouterr().err)
        is_away = False
        wait_for(lambda: there(run, "metrics.jsonl"))


def wait_for(condition):
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_what_is_not_sent_at_the_end_is_an_error(run, monkeypatch):
    def away(*_):
        raise OSError("no answer")

    monkeypatch.setattr(objects, "_put", away)
    with pytest.raises(Unreachable), run:
        write(run, "metrics.jsonl", b'{"step": 1}\n')


def test_a_local_folder_is_left_alone(tmp_path):
    with mirrored("", tmp_path), Mirror("", tmp_path) as mirror:
        mirror.make(may_begin=True)
        mirror.fetch()
        mirror.send()
    assert list(tmp_path.iterdir()) == []


def test_of_several_that_create_an_object_one_does(run):
    url = f"{run.url}/trainer.json"
    assert objects.create_object(b"1", url) and not objects.create_object(b"2", url)
    assert there(run, "trainer.json") == b"1"
