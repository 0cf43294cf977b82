"""One trainer a run folder."""

import itertools
import json
import signal
import socket
import threading
import time

import pytest
from fsspec.implementations.memory import MemoryFileSystem

from jina_jax.errors import ExitCode, UserError
from jina_jax.system.objects import put_object, read_object
from jina_jax.train.watch import lease
from jina_jax.train.watch.lease import LEASE_FILE, Lease
from tests.trainer import curve, start, wait_for_step


def write(folder, **values):
    lease = {"host": "elsewhere", "pid": 7, "token": "x", "beats": 1} | values
    (folder / LEASE_FILE).write_text(json.dumps(lease))


def test_a_second_one_is_refused_while_the_first_lives(tmp_path):
    with (
        Lease(tmp_path, 60),
        pytest.raises(UserError, match=f"by process \\d+ on {socket.gethostname()}; nothing was"),
        Lease(tmp_path, 60),
    ):
        pass
    assert not (tmp_path / LEASE_FILE).exists()
    with Lease(tmp_path, 60):
        pass


def test_what_a_killed_one_left_on_this_host_is_taken_at_once(tmp_path):
    write(tmp_path, host=socket.gethostname())
    began = time.monotonic()
    with Lease(tmp_path, 6):
        assert json.loads((tmp_path / LEASE_FILE).read_text())["token"] != "x"
    assert time.monotonic() - began < 4


def test_another_host_is_waited_for_and_then_gone(tmp_path, capsys):
    write(tmp_path)
    began = time.monotonic()
    with Lease(tmp_path, 1.2):
        pass
    assert time.monotonic() - began > 1.2
    assert "elsewhere began to train in" in capsys.readouterr().err


def test_another_host_that_gives_signs_of_life_keeps_it(tmp_path):
    ended = threading.Event()

    def beat():
        beats = 1
        while not ended.wait(0.2):
            beats += 1
            write(tmp_path, beats=beats)

    write(tmp_path)
    other = threading.Thread(target=beat)
    other.start()
    try:
        with pytest.raises(UserError, match="by process 7 on elsewhere"), Lease(tmp_path, 3):
            pass
    finally:
        ended.set()
        other.join()
    assert json.loads((tmp_path / LEASE_FILE).read_text())["host"] == "elsewhere"


def test_one_that_was_silent_for_too_long_gives_way(tmp_path, monkeypatch):
    ended = []
    monkeypatch.setattr(lease, "end_at_once", lambda code, what: ended.append((code, what)))
    with Lease(tmp_path, 0.6):
        write(tmp_path)
        deadline = time.monotonic() + 10
        while not ended and time.monotonic() < deadline:
            time.sleep(0.02)
    code, what = ended[0]
    assert code == ExitCode.TAKEN_OVER and "was taken over by process 7 on elsewhere" in what


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff"])
def test_a_damaged_lease_is_none(tmp_path, content):
    (tmp_path / LEASE_FILE).write_bytes(content)
    with Lease(tmp_path, 60):
        pass


@pytest.mark.slow
def test_two_trainers_of_one_folder(folder, uninterrupted):
    flags = ("--train.num-steps=100000",)
    first = start(folder, "leased", *flags)
    assert wait_for_step(folder, "leased", first, 10)
    second = start(folder, "leased", *flags)
    _, said = second.communicate(timeout=300)
    assert second.returncode == ExitCode.USER_ERROR
    assert f"is being trained in by process {first.pid} on" in said and "--workdir" in said
    assert first.poll() is None
    first.send_signal(signal.SIGKILL)
    first.wait()
    reached = len(curve(folder, "leased"))
    again = start(folder, "leased", *flags)
    assert wait_for_step(folder, "leased", again, reached + 5)
    again.send_signal(signal.SIGTERM)
    _, said = again.communicate(timeout=300)
    assert "waiting" not in said and again.returncode == 128 + signal.SIGTERM
    steps = [line[0] for line in curve(folder, "leased")]
    assert steps == list(range(1, len(steps) + 1))


@pytest.fixture
def url():
    yield "memory://leased/run"
    MemoryFileSystem.store.clear()


def held(url):
    return json.loads(read_object(f"{url}/{LEASE_FILE}") or b"{}")


def put(url, **values):
    lease = {"host": "elsewhere", "pid": 7, "token": "x", "beats": 1, "place": "there"} | values
    put_object(json.dumps(lease).encode(), f"{url}/{LEASE_FILE}")


def test_at_a_url_a_second_machine_is_refused_while_the_first_lives(tmp_path, url):
    with (
        Lease(tmp_path / "one", 0.6, url),
        pytest.raises(UserError, match=f"{url} is being trained in by process"),
        Lease(tmp_path / "two", 0.6, url),
    ):
        pass
    assert not held(url)


def test_at_a_url_a_silent_machine_is_waited_for(tmp_path, url, capsys):
    # Its name alone says nothing: another machine may have it too.
    put(url, host=socket.gethostname())
    began = time.monotonic()
    with Lease(tmp_path, 1.2, url):
        assert held(url)["token"] != "x"
    assert time.monotonic() - began > 1.2


def test_at_a_url_what_was_killed_here_is_taken_at_once(tmp_path, url, capsys):
    with Lease(tmp_path, 600, url):
        left = held(url)
    put(url, **left)
    with Lease(tmp_path, 600, url):
        assert held(url)["token"] != left["token"]
    assert "waiting" not in capsys.readouterr().err


def test_at_a_url_of_two_that_come_at_once_one_gets_it(tmp_path, url, monkeypatch):
    """Both have seen that nobody holds it."""
    first, second = (Lease(tmp_path / name, 60, url) for name in ("one", "two"))
    seen, looks = second._holder, itertools.count()
    monkeypatch.setattr(second, "_holder", lambda: {} if next(looks) < 2 else seen())
    with first, pytest.raises(UserError, match="is being trained in"), second:
        pass
