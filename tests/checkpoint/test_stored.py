"""Steps in an object store: any mesh reads what another wrote, and half a step is none."""

import itertools
import json
from contextlib import contextmanager
from typing import NamedTuple

import jax
import numpy as np
import pytest
from fsspec.implementations.memory import MemoryFileSystem
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from jina_jax.checkpoint import stored
from jina_jax.checkpoint.checkpoints import Checkpoints
from jina_jax.checkpoint.state import TrainState
from jina_jax.errors import StoreAway, UserError
from jina_jax.system import objects
from jina_jax.system.mirror import Mirror
from tests.mirrors import mirror_of_memory

_NUMBERS = itertools.count()
A = np.arange(64, dtype=np.float32).reshape(8, 8)
B = np.arange(10, dtype=np.float32)


@pytest.fixture
def run(tmp_path, monkeypatch):
    """A run's mirror, whose URL is in fsspec's memory."""
    with mirror_of_memory(tmp_path / "mirror", monkeypatch) as mirror:
        yield mirror


def another(run, tmp_path):
    """The same run as another machine sees it."""
    mirror = Mirror(run.url, tmp_path / f"machine-{next(_NUMBERS)}")
    mirror.make(may_begin=False)
    return mirror.folder / "checkpoints"


def state(step, sizes=(2, 4), specs=(P("x", "y"), P())):
    """A state on a mesh of eight devices whose arrays tell the step."""
    mesh = Mesh(np.array(jax.devices()).reshape(sizes), ("x", "y"))

    def put(values, spec):
        return jax.device_put(values, NamedSharding(mesh, spec))

    moments = put((A + step).astype("bfloat16"), specs[0])
    return TrainState(
        put(np.int32(step), P()), {"a": put(A * step, specs[0]), "b": put(B, specs[1])}, moments,
        put(np.float32(0.5), P()), {}, None,
    )  # fmt: skip


def like(**places):
    return jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state(0, **places)
    )


def save(run, *steps, keep=3):
    with Checkpoints(run.folder / "checkpoints", keep=keep) as checkpoints:
        for step in steps:
            checkpoints.save(state(step), {"of": step})


def objects_of(run):
    return [name for name in objects.list_objects(run.url) if name.startswith("checkpoints/")]


def change(run, name, content):
    path = f"{run.url.removeprefix('memory:/')}/checkpoints/{name}"
    MemoryFileSystem().pipe_file(path, content)


def test_a_step_is_read_on_other_meshes_and_machines(run, tmp_path):
    save(run, 7)
    for sizes, specs in [((8, 1), (P("x"), P())), ((1, 8), (P(None, "y"), P())),
                         ((4, 2), (P(("x", "y")), P("y")))]:  # fmt: skip
        checkpoints = Checkpoints(another(run, tmp_path))
        assert checkpoints.newest_good() == 7 and checkpoints.metadata(7) == {"of": 7}
        found = checkpoints.restore(7, like(sizes=sizes, specs=specs))
        jax.tree.map(np.testing.assert_array_equal, found, state(7))
        assert found.params["a"].sharding.spec == specs[0] and found.opt_state.dtype == "bfloat16"
    params = Checkpoints(another(run, tmp_path)).folder
    assert Checkpoints(params).newest_good(parts=("params",)) == 7
    # Of parameters alone nothing else is fetched.
    assert [p.name.partition(".")[0] for p in (params / "7").iterdir()] == ["params"]


def test_a_process_fetches_what_its_devices_want(run, tmp_path, monkeypatch):
    there = stored.StoredSteps(f"{run.url}/checkpoints", run.folder / "checkpoints")
    files = {}
    for rank in range(2):
        monkeypatch.setattr(jax, "process_index", lambda rank=rank: rank)
        half = [("a", [4 * rank, 0], A[4 * rank : 4 * rank + 4]), *[("b", [0], B)] * (not rank)]
        written = there.write(there.folder / "saving-3", {"params": half})
        for name in written:
            objects.put_object(there.folder / "saving-3" / name, f"{there.url}/3/{name}")
        files |= written
    sealed = {"metadata": {}, "arrays": {}, "files": files}
    objects.put_object(json.dumps(sealed).encode(), f"{there.url}/3/seal.json")

    class Rows(NamedTuple):
        """Wanted by a process with one device of several, as `jax.ShapeDtypeStruct` says it."""

        first: int
        last: int
        shape: tuple[int, int] = (8, 8)

        @property
        def sharding(self):
            return self

        def addressable_devices_indices_map(self, shape):
            return {0: (slice(self.first, self.last), slice(None))}

    def fetched(asked):
        at = stored.StoredSteps(there.url, tmp_path / f"machine-{next(_NUMBERS)}")
        assert asked(at) == ""
        return sorted(p.name.split(".")[1] for p in (at.folder / "3").glob("*"))

    for rows, ranks in [((0, 4), ["0"]), ((4, 8), ["1"]), ((3, 5), ["0", "1"])]:
        wanted = {"params": {"a": Rows(*rows)}}
        assert fetched(lambda at, wanted=wanted: at.fetch_for(3, wanted)) == ranks
    # Together they look at every file.
    assert [fetched(lambda at, i=i: at.fetch(3, ["params"], (i, 2))) for i in range(2)] == [
        ["0"], ["1"],
    ]  # fmt: skip
    assert fetched(lambda at: at.fetch(3, ["params"])) == ["0", "1"]


def test_another_shape_is_refused(run):
    save(run, 7)
    wanted = like()
    wanted.params["a"] = jax.ShapeDtypeStruct((8, 9), np.float32, sharding=None)
    checkpoints = Checkpoints(run.folder / "checkpoints")
    checkpoints.newest_good()
    with pytest.raises(UserError, match=r"a: float32\[8, 8\] → float32\[8, 9\]"):
        checkpoints.restore_params(7, wanted.params)


def test_old_steps_go_there_and_here(run):
    save(run, 1, 2, 3, keep=2)
    assert sorted({name.split("/")[1] for name in objects_of(run)}) == ["2", "3"]
    here = (run.folder / "checkpoints").iterdir()
    assert sorted(path.name for path in here if path.name.isdecimal()) == ["2", "3"]


@pytest.fixture
def before_the_seal(monkeypatch):
    """What is saved in this context is killed before its seal is put."""
    put = stored.put_object

    def killed(content, url):
        assert not url.endswith("seal.json"), "killed"
        put(content, url)

    @contextmanager
    def context():
        with monkeypatch.context() as patch, pytest.raises(StoreAway, match="killed"):
            patch.setattr(stored, "put_object", killed)
            yield

    return context


def test_a_step_without_its_seal_is_none_and_goes(run, tmp_path, before_the_seal):
    save(run, 1)
    with before_the_seal():
        save(run, 2)
    assert any(name.startswith("checkpoints/2/") for name in objects_of(run))
    assert Checkpoints(another(run, tmp_path)).steps == [1]
    save(run, 3)
    assert not any(name.startswith("checkpoints/2/") for name in objects_of(run))


def test_half_of_a_step_leaves_the_whole_one_that_is_there(run, tmp_path, before_the_seal):
    save(run, 4)
    with before_the_seal(), Checkpoints(another(run, tmp_path), keep=3) as elsewhere:
        elsewhere.save(state(5)._replace(step=state(4).step), {"of": "elsewhere"})
    there = Checkpoints(another(run, tmp_path))
    assert there.newest_good() == 4
    jax.tree.map(np.testing.assert_array_equal, there.restore(4, like()), state(4))


def test_what_was_not_sent_is_sent_by_the_next_start(run, tmp_path, monkeypatch):
    def away(content, url):
        raise OSError("no answer")

    save(run, 1)
    with monkeypatch.context() as patch:
        patch.setattr(objects, "_put", away)
        with pytest.raises(StoreAway, match="same command on this machine") as error:
            save(run, 2)
    assert error.value.exit_code == 13
    with Checkpoints(run.folder / "checkpoints", keep=3) as checkpoints:
        checkpoints.send_kept()
        assert checkpoints.steps == [1, 2]
    there = Checkpoints(another(run, tmp_path))
    assert there.newest_good() == 2
    jax.tree.map(np.testing.assert_array_equal, there.restore(2, like()), state(2))


def test_what_is_behind_the_store_is_not_sent(run, monkeypatch, tmp_path):
    with monkeypatch.context() as patch:
        patch.setattr(stored, "put_object", lambda *_: 1 / 0)
        with pytest.raises(StoreAway):
            save(run, 2)
    with Checkpoints(another(run, tmp_path), keep=3) as elsewhere:
        elsewhere.save(state(3), {})
    with Checkpoints(run.folder / "checkpoints", keep=3) as checkpoints:
        checkpoints.send_kept()
        assert checkpoints.steps == [3]


def test_another_run_at_the_same_place_gets_nothing_of_the_old(run):
    run.folder.joinpath("metrics.jsonl").write_text('{"step": 1}\n')
    save(run, 5)
    MemoryFileSystem.store.clear()
    again = Mirror(run.url, run.folder)
    again.make(may_begin=True)
    assert not (run.folder / "metrics.jsonl").exists()
    assert Checkpoints(run.folder / "checkpoints").newest_good() is None


@pytest.mark.parametrize("how", ["bytes", "gone", "seal"])
def test_a_damaged_step_is_set_aside_for_the_one_before(run, tmp_path, capsys, how):
    save(run, 1, 2)
    name = next(n for n in objects_of(run) if n.startswith("checkpoints/2/params"))
    if how == "gone":
        objects.remove_object(f"{run.url}/{name}")
    else:
        target = name.removeprefix("checkpoints/") if how == "bytes" else "2/seal.json"
        change(run, target, b"x" * 20)
    folder = another(run, tmp_path)
    # Who only reads changes nothing.
    assert Checkpoints(folder).newest_good() == 1 and Checkpoints(folder).steps == [1, 2]
    assert Checkpoints(folder, keep=3).newest_good() == 1
    assert Checkpoints(folder).steps == [1]
    assert "CHECKPOINT DAMAGED" in capsys.readouterr().err
    assert "checkpoints/2/seal.damaged.json" in objects_of(run)
    jax.tree.map(np.testing.assert_array_equal, Checkpoints(folder).restore(1, like()), state(1))


def test_a_damaged_copy_on_this_machine_is_fetched_again(run, tmp_path):
    save(run, 1)
    folder = another(run, tmp_path)
    assert Checkpoints(folder).newest_good() == 1
    path = next((folder / "1").glob("params*"))
    content = path.read_bytes()
    path.write_bytes(content[:-1] + b"\xff")
    assert Checkpoints(folder).newest_good() == 1
    assert path.read_bytes() == content


def test_a_step_that_lacks_values_is_not_sealed(run, monkeypatch):
    taken = stored.snapshot

    def without_one(parts):
        found = taken(parts)
        found["params"].pop()
        return found

    monkeypatch.setattr("jina_jax.checkpoint.checkpoints.snapshot", without_one)
    with pytest.raises(StoreAway, match="of 10 values were written"):
        save(run, 1)
    assert Checkpoints(run.folder / "checkpoints").steps == []


def test_two_writers_of_a_step_do_not_mix(run, tmp_path):
    save(run, 4)
    with Checkpoints(another(run, tmp_path), keep=3) as elsewhere:
        elsewhere.save(state(4), {"of": "elsewhere"})
    names = [n for n in objects_of(run) if "seal" not in n]
    assert len(names) == 2
    sealed = json.loads(objects.read_object(f"{run.url}/checkpoints/4/seal.json"))
    assert {n.rpartition("/")[2] for n in names} == set(sealed["files"])
    assert sealed["metadata"] == {"of": "elsewhere"}
