"""A Ray cluster on this machine, whose nodes have no folder in common."""

import itertools
from pathlib import Path


class Nodes:
    """A cluster of nodes of one core, each with a home of its own."""

    def __init__(self, folder: Path):
        from ray.cluster_utils import Cluster

        self.folder, self.numbers = folder / "nodes", itertools.count()
        self.cluster = Cluster(
            initialize_head=True,
            shutdown_at_exit=False,  # Whose hooks a thread cannot set.
            head_node_args={"num_cpus": 1, "env_vars": self._home()},
        )
        self.add()
        self.cluster.wait_for_nodes()

    def _home(self) -> dict[str, str]:
        home = self.folder / str(next(self.numbers))
        home.mkdir(parents=True)
        return {"HOME": str(home)}

    def add(self) -> None:
        """A second node."""
        self.second = self.cluster.add_node(num_cpus=1, env_vars=self._home())

    def kill(self) -> None:
        """Ends the second node at once."""
        self.cluster.remove_node(self.second, allow_graceful=False)

    def caches(self) -> set[str]:
        """Homes of nodes that keep what they fetched."""
        return {path.name for path in self.folder.iterdir() if list(path.rglob("*.arrow"))}
