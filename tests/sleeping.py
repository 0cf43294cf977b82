"""Tasks whose beginning and end can be watched, in a module that Ray's workers can import."""

import functools
import time
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Slept:
    number: int


def sleep(number: int, log: Path) -> Slept:
    """Notes on which Ray node it begins, and that it has ended."""
    import ray

    node = ray.get_runtime_context().get_node_id()
    with log.open("a") as file:
        file.write(f"begun {number} {node}\n")
    time.sleep(1.0)
    with log.open("a") as file:
        file.write(f"ended {number} {node}\n")
    return Slept(number)


@functools.cache
def _load(log: Path) -> None:
    """Stands for the model, of which it takes note once in a process."""
    with log.open("a") as file:
        file.write("loaded\n")


def with_model(number: int, log: Path) -> Slept:
    """As `sleep`, with something that is loaded once in a process."""
    _load(log)
    return sleep(number, log)


def hang_once(number: int, hung: Path) -> Slept:
    """Hangs where no other has hung before."""
    try:
        hung.touch(exist_ok=False)
    except FileExistsError:
        return Slept(number)
    time.sleep(3600)
    raise AssertionError
