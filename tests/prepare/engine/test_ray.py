"""The same preparation on a Ray cluster of two nodes, one of which is killed midway."""

import http.server
import importlib.util
import os
import shutil
import sys
import threading
import time
from pathlib import Path

import pytest

from jina_jax.config import EngineConfig
from jina_jax.errors import UserError
from jina_jax.prepare.engine import ray as ray_engine
from jina_jax.prepare.engine.task import Task, run_tasks
from tests.pairs import config, files, filtered, pair, run, triplet, write
from tests.sleeping import Slept, sleep

ROOT = Path(__file__).parents[2]
needs_ray = pytest.mark.skipif(
    importlib.util.find_spec("ray") is None,
    reason="ray is not installed: pip install 'jina-jax[ray]'",
)


def test_without_ray_the_way_to_get_it_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    source = write(tmp_path / "a.jsonl", [pair(i) for i in range(50)])
    with pytest.raises(UserError, match=r"pip install 'jina-jax\[ray\]'"):
        run(config(source, engine=EngineConfig("ray")), tmp_path / "out")


@needs_ray
@pytest.mark.slow
def test_an_address_where_nothing_answers_is_refused_at_once(tmp_path):
    source = write(tmp_path / "a.jsonl", [pair(i) for i in range(50)])
    engine = EngineConfig("ray", ray_address="127.0.0.1:9")
    with pytest.raises(UserError, match="start one with `ray start --head --port 9` on 127"):
        run(config(source, engine=engine), tmp_path / "out")


@needs_ray
@pytest.mark.slow
def test_a_server_that_is_not_rays_is_refused_in_time(monkeypatch):
    monkeypatch.setattr(ray_engine, "_ANSWER_S", 4)
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), http.server.SimpleHTTPRequestHandler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    started = time.monotonic()
    try:
        with pytest.raises(UserError, match=r"does not answer as Ray does\): start one with"):
            ray_engine.RayEngine(f"127.0.0.1:{server.server_port}", 0)
    finally:
        server.shutdown()
        server.server_close()
    assert time.monotonic() - started < 30


@pytest.fixture
def start_cluster(monkeypatch):
    """Starts a cluster of one node of one core, whose workers import what is below a folder."""
    from ray.cluster_utils import Cluster

    started = []

    def start(imports=ROOT):
        monkeypatch.setenv("PYTHONPATH", str(imports))
        monkeypatch.setenv("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0")
        started.append(Cluster(initialize_head=True, head_node_args={"num_cpus": 1}))
        return started[-1]

    yield start
    import ray

    ray.shutdown()
    for cluster in started:
        cluster.shutdown()


def two_nodes(start_cluster):
    cluster = start_cluster()
    cluster.second = cluster.add_node(num_cpus=1)
    cluster.wait_for_nodes()
    return cluster


def marked(done):
    """Markers and when they were written; none once the work has ended."""
    found = {}
    for path in done.glob("*.json"):
        try:
            found[path.name] = path.stat().st_mtime_ns
        except FileNotFoundError:
            return {}
    return found


@needs_ray
@pytest.mark.slow
@pytest.mark.parametrize("killed", [False, True])
def test_a_cluster_changes_no_byte_even_when_a_node_is_killed(start_cluster, tmp_path, killed):
    cluster = two_nodes(start_cluster)
    sources = [
        write(tmp_path / "first.jsonl", [pair(i) for i in range(1500)] + ["{"] * 5),
        write(tmp_path / "triplets.jsonl", [triplet(i) for i in range(800)]),
    ]
    run(filtered(*sources, engine=EngineConfig("local", 1)), tmp_path / "alone")
    done = tmp_path / ".out.partial" / "done"
    before, last = {}, {}

    def watch() -> None:
        while not (tmp_path / "out").exists():
            if now := marked(done):
                last.update(now)
            if killed and not before and len(last) >= 12:
                before.update(last)
                cluster.remove_node(cluster.second, allow_graceful=False)
            time.sleep(0.005)

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    engine = EngineConfig("ray", ray_address=cluster.address)
    started = time.monotonic()
    run(filtered(*sources, engine=engine), tmp_path / "out")
    print(f"{time.monotonic() - started:.1f} s, {len(last)} tasks, {len(before)} before the kill")
    thread.join(timeout=60)
    assert files(tmp_path / "out") == files(tmp_path / "alone")
    if killed:
        assert 12 <= len(before) < 0.7 * len(last)
        # What had been finished, on whichever node, was not done again.
        assert before.items() <= last.items()


@needs_ray
@pytest.mark.slow
def test_what_ran_on_a_lost_node_runs_again_and_what_had_ended_does_not(start_cluster, tmp_path):
    cluster = two_nodes(start_cluster)
    lost, log = cluster.second.node_id, tmp_path / "log"
    log.touch()
    (tmp_path / "done").mkdir()

    def kill() -> None:
        # The node has ended one task and is at work on another.
        while log.read_text().count(lost) < 3:
            time.sleep(0.01)
        cluster.remove_node(cluster.second, allow_graceful=False)

    thread = threading.Thread(target=kill, daemon=True)
    thread.start()
    engine = ray_engine.RayEngine(cluster.address, 0)
    tasks = [Task(f"sleep-{i}", sleep, (i, log), "k") for i in range(10)]
    try:
        results = list(run_tasks(engine, tasks, tmp_path / "done"))
    finally:
        engine.close()
    thread.join(timeout=60)
    assert results == [Slept(i) for i in range(10)]
    events = [line.split() for line in log.read_text().splitlines()]
    begun = {i: [e[2] for e in events if e[:2] == ["begun", str(i)]] for i in range(10)}
    ended = {i: [e[2] for e in events if e[:2] == ["ended", str(i)]] for i in range(10)}
    again = [i for i, nodes in begun.items() if len(nodes) > 1]
    assert len(again) == 1 and begun[again[0]][0] == lost != begun[again[0]][1]
    assert all(len(nodes) == 1 for nodes in ended.values())
    assert [lost] in ended.values()


@needs_ray
@pytest.mark.slow
@pytest.mark.parametrize("missing", [False, True])
def test_a_node_with_another_package_or_none_is_named(
    start_cluster, tmp_path, monkeypatch, missing
):
    # Workers also import from where the driver runs.
    monkeypatch.chdir(tmp_path)
    other = tmp_path / "imports" / "jina_jax"
    if missing:
        other.mkdir(parents=True)
        (other / "__init__.py").write_text("raise ImportError('there is no jina_jax')\n")
    else:
        shutil.copytree(ROOT / "jina_jax", other)
        with (other / "data" / "atomic.py").open("a") as file:
            file.write("\n# Another version.\n")
    cluster = start_cluster(other.parent)
    source = write(tmp_path / "a.jsonl", [pair(i) for i in range(50)])
    settings = config(source, engine=EngineConfig("ray", ray_address=cluster.address))
    said = "cannot import jina_jax: .*no jina_jax" if missing else "another version of jina_jax"
    with pytest.raises(UserError, match=f"{os.uname().nodename} .*{said}.* on all nodes"):
        run(settings, tmp_path / "out")
