import json
import os
import signal
from dataclasses import dataclass
from pathlib import Path

import pytest

from jina_jax.errors import UserError
from jina_jax.prepare.engine.local import LocalEngine
from jina_jax.prepare.engine.task import Task, WorkerLostError, run_tasks
from jina_jax.system.hashing import content_key
from jina_jax.system.store import open_store


@dataclass(frozen=True)
class Doubled:
    value: int
    names: tuple[str, ...]


def double(number: int, log: Path) -> Doubled:
    with log.open("a") as file:
        file.write(f"{number}\n")
    return Doubled(2 * number, (str(number),))


def refuse(number: int) -> Doubled:
    raise UserError(f"no {number}")


def die() -> Doubled:
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError


def doubles(log, count, key="k"):
    return [Task("double", double, (i, log), content_key(key, i)) for i in range(count)]


@pytest.fixture
def store(tmp_path):
    return open_store(str(tmp_path / "work"), "", 0, "work")


@pytest.fixture(params=[1, 2])
def engine(request):
    engine = LocalEngine(request.param)
    yield engine
    engine.close()


def ran(log):
    return sorted(map(int, log.read_text().split())) if log.exists() else []


def test_results_come_in_order_and_finished_tasks_do_not_run_again(engine, store, tmp_path):
    log = tmp_path / "log"
    expected = [Doubled(2 * i, (str(i),)) for i in range(40)]
    assert list(run_tasks(engine, doubles(log, 40)[::2], store)) == expected[::2]
    assert list(run_tasks(engine, doubles(log, 40), store)) == expected
    assert ran(log) == list(range(40))


def test_another_key_or_a_torn_marker_runs_again(engine, store, tmp_path):
    log = tmp_path / "log"
    list(run_tasks(engine, doubles(log, 3), store))
    marker = Path(doubles(log, 2)[1].marker(store).path)
    marker.write_bytes(marker.read_bytes()[:-9])
    list(run_tasks(engine, doubles(log, 3), store))
    assert ran(log) == [0, 1, 1, 2]
    list(run_tasks(engine, doubles(log, 3, key="other"), store))
    assert ran(log) == [0, 0, 1, 1, 1, 2, 2]
    # What was done under other keys stays done.
    list(run_tasks(engine, doubles(log, 3), store))
    assert ran(log) == [0, 0, 1, 1, 1, 2, 2]
    assert json.loads(marker.read_text()) == {"result": {"value": 2, "names": ["1"]}}


def test_an_error_of_a_task_is_raised_and_what_was_finished_stays(engine, store, tmp_path):
    log = tmp_path / "log"
    tasks = doubles(log, 4)
    tasks.insert(2, Task("refuse", refuse, (7,), "k"))
    with pytest.raises(UserError, match="no 7"):
        list(run_tasks(engine, tasks, store))
    assert not tasks[2].marker(store).exists()
    assert len(list(run_tasks(engine, doubles(log, 4), store))) == 4
    assert ran(log) == [0, 1, 2, 3]


def test_closing_early_leaves_the_rest_undone(store, tmp_path):
    results = run_tasks(LocalEngine(1), doubles(tmp_path / "log", 4), store)
    next(results)
    results.close()
    assert ran(tmp_path / "log") == [0]


def test_a_worker_that_is_killed_is_reported(store, tmp_path):
    engine = LocalEngine(2)
    tasks = [Task("die", die, (), f"k{i}") for i in range(2)]
    with pytest.raises(WorkerLostError, match="finished tasks are kept"):
        list(run_tasks(engine, tasks, store))
    # The same engine works on.
    assert len(list(run_tasks(engine, doubles(tmp_path / "log", 4), store))) == 4
    engine.close()


def test_keys_tell_values_apart_and_nothing_else():
    assert content_key({"a": 1, "b": [2]}) == content_key({"b": (2,), "a": 1})
    assert len({content_key("a", "b"), content_key("ab"), content_key(["a", "b"])}) == 3
