"""A task whose beginning and end can be watched, in a module that Ray's workers can import."""

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
