"""The same preparation on a Ray cluster of two nodes, one of which is killed midway."""

import http.server
import importlib.util
import os
import shutil
import sys
import threading
import time
import types
from dataclasses import replace
from itertools import accumulate
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from jina_jax.config import ConsistencyConfig, EngineConfig, MarginConfig, TokenizerConfig
from jina_jax.errors import UserError
from jina_jax.inference.model_folder import model_sha256
from jina_jax.prepare import scoring
from jina_jax.prepare.engine import ray as ray_engine
from jina_jax.prepare.engine.actors import actor_options
from jina_jax.prepare.engine.task import Task, run_tasks
from jina_jax.system.store import open_store
from tests.logged_scorers import LoggedConsistency, LoggedMargin
from tests.pairs import (
    config,
    files,
    filtered,
    markers,
    number_name,
    pair,
    run,
    triplet,
    write,
)
from tests.random_texts import texts
from tests.sleeping import Slept, hang_once, sleep, with_model

ROOT = Path(__file__).parents[3]
needs_ray = pytest.mark.skipif(
    importlib.util.find_spec("ray") is None,
    reason="ray is not installed: pip install 'jina-jax[ray]'",
)


def test_without_ray_the_way_to_get_it_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    source = write(tmp_path / "a.jsonl", [pair(i) for i in range(50)])
    with pytest.raises(UserError, match=r"pip install 'jina-jax\[ray\]'"):
        run(config(source, engine=EngineConfig("ray")), tmp_path / "out")


@pytest.mark.parametrize(
    "hosts, per_host, asked, room",
    [
        # A GPU each, on however many hosts; hosts without one are passed over.
        ([{"CPU": 8.0, "GPU": 4.0}, {"CPU": 8.0, "GPU": 4.0}, {"CPU": 64.0}], 0,
         {"num_cpus": 1, "num_gpus": 1}, 8),
        ([{"CPU": 8.0, "GPU": 4.0}, {"CPU": 8.0, "GPU": 8.0}], 2,
         {"num_cpus": 1, "num_gpus": 2}, 6),
        # All chips of a TPU host are of one process.
        ([{"CPU": 96.0, "TPU": 4.0}] * 3, 0, {"num_cpus": 1, "resources": {"TPU": 4}}, 3),
        ([{"CPU": 16.0}, {"CPU": 4.0}, {}], 0, {"num_cpus": 4}, 5),
        ([{"CPU": 16.0}, {"CPU": 4.0}], 4, {"num_cpus": 1}, 20),
    ],
)  # fmt: skip
def test_what_an_actor_asks_for(hosts, per_host, asked, room):
    nodes = [{"Alive": True, "Resources": host} for host in hosts]
    nodes.append({"Alive": False, "Resources": {"CPU": 1.0, "GPU": 1.0, "TPU": 1.0}})
    ray = types.SimpleNamespace(nodes=lambda: nodes)
    assert actor_options(ray, per_host) == (asked, room)


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
    """Starts a cluster of one node, whose workers import what is below a folder."""
    from ray.cluster_utils import Cluster

    started = []

    def start(imports=ROOT, cores=1):
        also = os.environ.get("PYTHONPATH", "")
        monkeypatch.setenv("PYTHONPATH", f"{imports}{os.pathsep}{also}")
        monkeypatch.setenv("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0")
        started.append(Cluster(initialize_head=True, head_node_args={"num_cpus": cores}))
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
    work = tmp_path / "out.work"
    before, last = {}, {}

    def watch() -> None:
        while not (tmp_path / "out").exists():
            if now := markers(work):
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


def lose_second(cluster, log):
    """Removes the second node when it has ended one task and is at work on another.

    Returns: the thread that does so.
    """

    def remove() -> None:
        while log.read_text().count(cluster.second.node_id) < 3:
            time.sleep(0.01)
        cluster.remove_node(cluster.second, allow_graceful=False)

    thread = threading.Thread(target=remove, daemon=True)
    thread.start()
    return thread


@needs_ray
@pytest.mark.slow
def test_what_ran_on_a_lost_node_runs_again_and_what_had_ended_does_not(start_cluster, tmp_path):
    cluster = two_nodes(start_cluster)
    lost, log = cluster.second.node_id, tmp_path / "log"
    log.touch()

    thread = lose_second(cluster, log)
    engine = ray_engine.RayEngine(cluster.address, 0)
    tasks = [Task("sleep", sleep, (i, log), f"k{i}") for i in range(10)]
    try:
        results = list(run_tasks(engine, tasks, open_store(str(tmp_path / "work"), "", 0, "")))
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


def spread(cluster, tasks, tmp_path, **options):
    """Results of tasks on a cluster."""
    engine = ray_engine.RayEngine(cluster.address, 0, **options)
    try:
        return list(run_tasks(engine, tasks, open_store(str(tmp_path / "work"), "", 0, "")))
    finally:
        engine.close()


def with_models(log, count):
    log.touch()
    return [Task("model", with_model, (i, log), f"k{i}", True) for i in range(count)]


@needs_ray
@pytest.mark.slow
@pytest.mark.parametrize("per_host", [0, 2])
def test_tasks_with_a_model_go_to_actors_that_load_it_once(start_cluster, tmp_path, per_host):
    cluster = start_cluster(cores=2)
    cluster.add_node(num_cpus=2)
    cluster.wait_for_nodes()
    log = tmp_path / "log"
    tasks = with_models(log, 12)
    found = spread(cluster, tasks, tmp_path, accelerators_per_host=per_host)
    assert found == [Slept(i) for i in range(12)]
    lines = log.read_text().splitlines()
    actors = 2 * (per_host or 1)
    assert lines.count("loaded") == actors
    events = [line.split() for line in lines if line != "loaded"]
    assert len({node for _, _, node in events}) == 2
    # So many are at work at once.
    at_work = list(accumulate(1 if event == "begun" else -1 for event, _, _ in events))
    assert max(at_work) == actors


@needs_ray
@pytest.mark.slow
def test_more_processes_than_a_host_can_have_are_refused(start_cluster, tmp_path):
    with pytest.raises(UserError, match=r"accelerators_per_host=3 is more than the 1 CPUs of a h"):
        spread(start_cluster(), with_models(tmp_path / "log", 1), tmp_path, accelerators_per_host=3)


@needs_ray
@pytest.mark.slow
def test_a_lost_actors_tasks_go_to_another(start_cluster, tmp_path):
    cluster, log = two_nodes(start_cluster), tmp_path / "log"
    lost = cluster.second.node_id
    tasks = with_models(log, 10)

    thread = lose_second(cluster, log)
    assert spread(cluster, tasks, tmp_path) == [Slept(i) for i in range(10)]
    thread.join(timeout=60)
    ended = [line.split()[1:] for line in log.read_text().splitlines() if line[0] == "e"]
    assert sorted(int(number) for number, _ in ended) == list(range(10))
    assert 1 <= sum(node == lost for _, node in ended) < 9


@needs_ray
@pytest.mark.slow
@pytest.mark.parametrize("has_model", [False, True])
def test_a_task_that_hangs_is_given_to_another_worker_too(
    start_cluster, tmp_path, monkeypatch, has_model
):
    monkeypatch.setattr(ray_engine, "_LATE_S", 2)
    monkeypatch.setattr(ray_engine, "_LOOK_S", 0.5)
    arguments = [(i, tmp_path / "hung") for i in range(4)]
    tasks = [Task("hang", hang_once, of_task, f"k{of_task[0]}", has_model) for of_task in arguments]
    assert spread(two_nodes(start_cluster), tasks, tmp_path) == [Slept(i) for i in range(4)]


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
        with (other / "system" / "atomic.py").open("a") as file:
            file.write("\n# Another version.\n")
    cluster = start_cluster(other.parent)
    source = write(tmp_path / "a.jsonl", [pair(i) for i in range(50)])
    settings = config(source, engine=EngineConfig("ray", ray_address=cluster.address))
    said = "cannot import jina_jax: .*no jina_jax" if missing else "another version of jina_jax"
    with pytest.raises(UserError, match=f"{os.uname().nodename} .*{said}.* on all nodes"):
        run(settings, tmp_path / "out")


@needs_ray
@pytest.mark.slow
def test_filters_with_a_model_give_the_same_scores_on_two_workers_at_once(
    start_cluster, tmp_path, monkeypatch, sentence_folder, cross_encoder_folder
):
    names = ("query", "positive", "negative")
    columns = [texts(300, seed=seed, longest=20) for seed in (3, 4, 5)]
    rows = [
        {name: f"{text} {number_name(i)}" for name, text in zip(names, row, strict=True)}
        for i, row in enumerate(zip(*columns, strict=True))
    ]
    sources = [
        write(tmp_path / "pairs.jsonl", [{n: row[n] for n in names[:2]} for row in rows]),
        write(tmp_path / "triplets.jsonl", rows),
    ]
    monkeypatch.setattr(scoring, "TASK_ROWS", 30)
    found, at_work = [], []
    cluster = two_nodes(start_cluster)
    engines = EngineConfig("local", 1), EngineConfig("ray", ray_address=cluster.address)
    for engine in engines:
        log = tmp_path / f"log-{engine.kind}"
        models = str(sentence_folder), str(cross_encoder_folder)
        scorers = [
            LoggedConsistency(
                ConsistencyConfig(True, models[0], top_k=4, sample_size=100),
                model_sha256(models[0]), str(log),
            ),
            LoggedMargin(
                MarginConfig(True, models[1], threshold=0.01), model_sha256(models[1]), str(log)
            ),
        ]  # fmt: skip
        settings = replace(config(*sources, engine=engine), tokenizer=TokenizerConfig("train", 32))
        manifest = run(settings, tmp_path / engine.kind, scorers=scorers)
        assert all(sum(source.stages[i].dropped.values()) > 20
                   for i, source in enumerate(manifest.sources))  # fmt: skip
        ledger = pq.read_table(tmp_path / engine.kind / "ledger").to_pylist()
        found.append({(row["file"], row["row"]): row["score"] for row in ledger})
        events = [line.split() for line in log.read_text().splitlines()]
        at_work.append(max(accumulate(1 if event == "begun" else -1 for event, _ in events)))
        nodes = {node for _, node in events}
        assert len(nodes) == (2 if engine.kind == "ray" else 1)
    assert at_work == [1, 2]
    assert found[0].keys() == found[1].keys()
    assert found[1] == pytest.approx(found[0], abs=1e-6, nan_ok=True)
    assert files(tmp_path / "local").keys() == files(tmp_path / "ray").keys()
