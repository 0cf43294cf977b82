"""Filters with a model that note when they score, in a module that Ray's workers can import."""

from dataclasses import dataclass
from pathlib import Path

from jina_jax.prepare.filters.scorers import ConsistencyFilter, MarginFilter


def _note(log, event):
    import ray

    node = ray.get_runtime_context().get_node_id() if ray.is_initialized() else "here"
    with Path(log).open("a") as file:
        file.write(f"{event} {node}\n")


class Logged:
    """Before a filter among the bases of a class that has `log`, the path of the notes."""

    def score(self, batch, learnt):
        _note(self.log, "begun")
        found = super().score(batch, learnt)
        _note(self.log, "ended")
        return found


@dataclass(frozen=True)
class LoggedConsistency(Logged, ConsistencyFilter):
    log: str = ""


@dataclass(frozen=True)
class LoggedMargin(Logged, MarginFilter):
    log: str = ""
