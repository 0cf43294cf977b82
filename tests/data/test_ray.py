"""The same preparation on a Ray cluster of two nodes, one of which is killed midway."""

import threading
import time
from pathlib import Path

import pytest

from jina_jax.config import EngineConfig
from jina_jax.errors import UserError
from tests.pairs import config, files, filtered, pair, run, triplet, write

ROOT = Path(__file__).parents[2]


def test_without_ray_the_way_to_get_it_is_named(tmp_path, monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "ray", None)
    source = write(tmp_path / "a.jsonl", [pair(i) for i in range(50)])
    with pytest.raises(UserError, match=r"pip install 'jina-jax\[ray\]'"):
        run(config(source, engine=EngineConfig("ray")), tmp_path / "out")


@pytest.mark.slow
def test_an_address_where_nothing_answers_is_refused_at_once(tmp_path):
    pytest.importorskip("ray", reason="ray is not installed: pip install 'jina-jax[ray]'")
    source = write(tmp_path / "a.jsonl", [pair(i) for i in range(50)])
    engine = EngineConfig("ray", ray_address="127.0.0.1:9")
    with pytest.raises(UserError, match="start one with `ray start --head --port 9` on 127"):
        run(config(source, engine=engine), tmp_path / "out")


@pytest.fixture
def cluster(monkeypatch):
    pytest.importorskip("ray", reason="ray is not installed: pip install 'jina-jax[ray]'")
    import ray
    from ray.cluster_utils import Cluster

    # Workers import the package and the tests' modules from here.
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0")
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    cluster.second = cluster.add_node(num_cpus=1)
    cluster.wait_for_nodes()
    ray.init(cluster.address, log_to_driver=False)
    yield cluster
    ray.shutdown()
    cluster.shutdown()


@pytest.mark.slow
@pytest.mark.parametrize("killed", [False, True])
def test_a_cluster_changes_no_byte_even_when_a_node_is_killed(cluster, tmp_path, killed):
    import ray

    sources = [
        write(tmp_path / "first.jsonl", [pair(i) for i in range(1500)] + ["{"] * 5),
        write(tmp_path / "triplets.jsonl", [triplet(i) for i in range(800)]),
    ]
    run(filtered(*sources, engine=EngineConfig("local", 1)), tmp_path / "alone")
    done = tmp_path / ".out.partial" / "done"
    killed_after: list[int] = []

    def kill() -> None:
        while (count := len(list(done.glob("*.json")))) < 12:
            time.sleep(0.01)
        cluster.remove_node(cluster.second, allow_graceful=False)
        killed_after.append(count)

    thread = threading.Thread(target=kill if killed else lambda: None)
    thread.start()
    run(filtered(*sources, engine=EngineConfig("ray")), tmp_path / "out")
    thread.join()
    assert files(tmp_path / "out") == files(tmp_path / "alone")
    if killed:
        # 51 tasks in all: what ran on the node, and what was to run there, ran elsewhere.
        assert killed_after[0] < 40
        deadline = time.monotonic() + 60
        while sum(node["Alive"] for node in ray.nodes()) > 1:
            assert time.monotonic() < deadline, "the node was not killed"
            time.sleep(0.5)
