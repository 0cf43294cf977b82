import dataclasses
import importlib.util
import json
import os
import re
import subprocess
import sys
import threading
import time

import psutil
import pytest

from jina_jax import cli
from jina_jax.config import FeedConfig, LossConfig, MeshConfig, RunConfig, SourceConfig, T5Config
from jina_jax.errors import UserError
from jina_jax.mesh import make_mesh
from jina_jax.model.flops import Work, step_flops
from jina_jax.model.weights import parameter_count
from jina_jax.plan import cache, child, run
from jina_jax.plan.batch_shape import batch_shape
from jina_jax.plan.compile import Compiled, Request, abstract_arguments, out_of_memory
from jina_jax.plan.report import report
from jina_jax.plan.run import PlanOptions, plan
from jina_jax.plan.topology import FAMILIES
from jina_jax.plan.traffic import BETWEEN_SLICES
from jina_jax.train.step import make_train_step

CONFIG = RunConfig(
    name="tiny",
    feed=FeedConfig(global_batch_size=32, query_tokens=16, positive_tokens=16, row_tokens=16),
    model=T5Config(vocab_size=64, d_model=32, d_kv=8, d_ff=64, num_layers=1, num_heads=4),
)
FITTING = Compiled(
    "TPU v5 lite", 16, True, 2**31, 0, 2**30, 2**30, 0, 8.19e9,
    {"all-reduce": 4e6, "all-gather": 1e6}, {"all-reduce": 3, "all-gather": 1},
)  # fmt: skip
NOT_FITTING = Compiled("TPU v5 lite", 16, False, 40 * 2**30, round(15.75 * 2**30))


@pytest.fixture(autouse=True)
def empty_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))


def test_the_step_is_compiled_in_a_process_of_its_own(capsys):
    (found,) = plan(CONFIG, PlanOptions())
    step = make_train_step(CONFIG, make_mesh())
    memory = step.lower(*abstract_arguments(CONFIG, found.shape)).compile().memory_analysis()
    assert found.compiled.devices == 8
    assert found.compiled.fits
    assert found.compiled.argument_bytes == memory.argument_size_in_bytes
    assert found.compiled.temporary_bytes == memory.temp_size_in_bytes
    assert found.compiled.collective_count["all-reduce"] >= 1
    # Gradients are as many as the parameters, and are received on the way out and back.
    assert found.compiled.collective_bytes["all-reduce"] > 2 * 7 / 8 * 4 * 64 * 32
    assert found.roofline is None
    text = report([found], PlanOptions())
    assert "no roofline: the peaks of cpu are not known" in text
    assert "32 pairs of 16 + 16 tokens" in text
    assert "compiling for 8 × cpu" in capsys.readouterr().err


def test_a_batch_that_does_not_divide_is_refused():
    config = dataclasses.replace(CONFIG, feed=dataclasses.replace(CONFIG.feed, rows_multiple=3))
    with pytest.raises(UserError, match="rows_multiple=3 does not divide by 8"):
        plan(config, PlanOptions())


def test_a_compilation_that_takes_too_long_is_stopped():
    with pytest.raises(UserError, match=r"took more than 0\.2 s"):
        plan(CONFIG, PlanOptions(timeout_s=0.2))


def test_a_compiler_that_is_killed_is_not_called_one_that_fails():
    def kill():
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            for process in psutil.Process().children():
                if "jina_jax.plan.compile" in process.cmdline():
                    process.kill()
                    return
            time.sleep(0.05)

    killer = threading.Thread(target=kill)
    killer.start()
    with pytest.raises(UserError, match="was ended by SIGKILL, perhaps for lack of memory"):
        plan(CONFIG, PlanOptions())
    killer.join()


def test_a_compilation_ends_with_the_process_that_wants_it():
    arguments = ["-m", "jina_jax.cli", "plan", "demo", "--model.num-layers", "24"]
    process = subprocess.Popen(
        [sys.executable, *arguments], stderr=subprocess.PIPE, stdout=subprocess.DEVNULL,
        text=True,
    )  # fmt: skip
    assert "plan: tracing" in process.stderr.readline()
    (child,) = psutil.Process(process.pid).children()
    process.kill()
    process.wait()
    child.wait(timeout=5)  # Much less than the compilation takes.


def test_without_the_compiler_the_way_to_it_is_named(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    request = Request(CONFIG, batch_shape(CONFIG.feed, 0), "v5e:4x4")
    with pytest.raises(UserError, match=r'pip install "jina-jax\[tpu\]"'):
        child.run_compile(request, timeout_s=1)


@pytest.mark.parametrize(
    ("message", "needed", "available"),
    [
        (
            "RESOURCE_EXHAUSTED: E1000: CompileTimeHbmOom: Ran out of memory on HBM, the total "
            "memory required for HLO temporaries (40.00G) exceeds available HBM (15.75G). HLO",
            40 * 2**30,
            15.75 * 2**30,
        ),
        (
            "RESOURCE_EXHAUSTED: Ran out of memory in memory space hbm. Used 512.5M of 31.24G hbm. "
            "Exceeded hbm capacity by 1M.",
            512.5 * 2**20,
            31.24 * 2**30,
        ),
    ],
)
def test_figures_of_the_compilers_refusal(message, needed, available):
    assert out_of_memory(message) == (round(needed), round(available))


def test_another_error_of_the_compiler_is_no_lack_of_memory():
    with pytest.raises(RuntimeError, match="INTERNAL"):
        out_of_memory("INTERNAL: something (1.00G) exceeds available HBM (2.00G)")


def test_results_are_kept_until_something_changes(monkeypatch):
    asked = []

    def compiled(request, *, timeout_s):
        asked.append(request)
        return FITTING

    monkeypatch.setattr(run, "run_compile", compiled)
    options = PlanOptions(topology="v5e:4x4")
    assert plan(CONFIG, options)[0].compiled == plan(CONFIG, options)[0].compiled == FITTING
    assert len(asked) == 1
    plan(CONFIG, dataclasses.replace(options, fresh=True))
    assert len(asked) == 2
    plan(dataclasses.replace(CONFIG, model=dataclasses.replace(CONFIG.model, d_ff=128)), options)
    plan(CONFIG, dataclasses.replace(options, topology="v6e:4x4"))
    plan(CONFIG, dataclasses.replace(options, tokens=8))
    assert len(asked) == 5
    monkeypatch.setattr(cache, "package_key", lambda: "another")
    plan(CONFIG, options)
    assert len(asked) == 6


def test_remedies_are_compiled_until_one_fits(monkeypatch):
    monkeypatch.setattr(
        run, "run_compile",
        lambda request, *, timeout_s: NOT_FITTING if request.shape.pairs > 8 else FITTING,
    )  # fmt: skip
    options = PlanOptions(topology="v5e:4x4")
    plans = plan(CONFIG, options)
    assert [p.shape.pairs for p in plans][-1] == 8
    assert [p.compiled.fits for p in plans] == [False] * (len(plans) - 1) + [True]
    text = report(plans, options)
    assert "does not fit: 40.00 GiB of 15.75 GiB a device" in text
    assert re.search(r"--feed.global-batch-size 8: fits, 2\.00 GiB of 15\.75 GiB a device", text)
    # Each is tried on top of those before; the batch, which is another run, comes last.
    assert [p.remedy.split(" --")[-1] for p in plans[1:]] == [
        "train.remat full", "mesh.fsdp 8", "mesh.fsdp 16", "train.grad-cache-rows 16",
        "feed.global-batch-size 16", "feed.global-batch-size 8",
    ]  # fmt: skip
    assert plans[1].remedy == "--train.scan-layers --train.remat full"
    assert plans[1].flops.hardware > plans[0].flops.hardware


def test_remedies_divide_parameters_within_a_slice():
    found = {changed.mesh.fsdp for _, changed in run.remedies(CONFIG, 16)}
    assert found == {1, 8, 16}
    found = {changed.mesh.fsdp for _, changed in run.remedies(CONFIG, 16, slices=2)}
    assert found == {1, 8}
    two = dataclasses.replace(CONFIG, mesh=MeshConfig(tensor=2))
    assert {changed.mesh.fsdp for _, changed in run.remedies(two, 16, slices=2)} == {1, 4}


def test_where_nothing_fits_that_is_said(monkeypatch, capsys):
    monkeypatch.setattr(run, "run_compile", lambda request, *, timeout_s: NOT_FITTING)
    assert cli.main(["plan", "demo", "--topology", "v5e:4x4"]) == 2
    captured = capsys.readouterr()
    assert "nothing that was tried fits" in captured.out
    assert "demo does not fit v5e:4x4" in captured.err


def test_time_and_cost_by_hand(monkeypatch):
    monkeypatch.setattr(run, "run_compile", lambda request, *, timeout_s: FITTING)
    options = PlanOptions(topology="v5e:4x4", pairs=115_200_000, price_per_chip_hour=1.5)
    (found,) = plan(CONFIG, options)
    work = Work.of_rows(found.shape.rows, 16)
    assert found.flops == step_flops(
        CONFIG.model, rows=work, texts=Work(32 * 2 * 16, 32 * 2 * 16**2), queries=32, keys=32,
        encoded_again=0,
    )  # fmt: skip
    text = report([found], options)
    # 8.19 GB at 819 GB/s are 10 ms; 32 pairs a step are 3,200 a second.
    assert "10.0 ms a step at best, bound by HBM" in text
    assert "3,200 pairs/s" in text
    assert "at least 10.00 h, 160.0 chip-hours, 240.00 at 1.5 a chip-hour" in text
    assert "no measurement" in text


def test_a_config_of_triplets_is_planned_with_their_negatives():
    source = SourceConfig("triplets", paths=("t.jsonl",), negative_field="negative")
    config = dataclasses.replace(
        CONFIG,
        data=dataclasses.replace(CONFIG.data, sources=(source,)),
        loss=LossConfig(matryoshka_dims=(8,)),
    )
    pairs, (triplets,), (more,) = plan(CONFIG, PlanOptions()), plan(config, PlanOptions()), plan(
        config, PlanOptions(negatives=3)
    )  # fmt: skip
    assert (triplets.shape.negatives, more.shape.negatives) == (1, 3)
    assert "32 records of 16 + 16 + 16 tokens" in report([triplets], PlanOptions())
    assert pairs[0].compiled.fits and triplets.compiled.fits and more.compiled.fits
    dims = CONFIG.model.d_model + 8
    assert triplets.flops.loss == 3 * 2 * 32 * 64 * dims
    assert more.flops.loss == 3 * 2 * 32 * 128 * dims


def test_plan_on_the_command_line(capsys):
    flags = [f"--model.{k.replace('_', '-')}={v}" for k, v in
             dataclasses.asdict(CONFIG.model).items() if k in ("d_ff", "num_layers")]  # fmt: skip
    assert cli.main(["plan", "demo", "--tokens", "20", *flags]) == 0
    assert "demo on local (8 × cpu): 128 pairs of 20 + 20 tokens" in capsys.readouterr().out
    assert cli.main(["plan", "demo", "--topology", "v5e:5x5"]) == 2
    assert "no topology 'v5e:5x5'" in capsys.readouterr().err
    assert cli.main(["plan", "demo", "--topology", "v4:2x2x4"]) == 2
    assert "nothing can be planned for v4" in capsys.readouterr().err


needs_libtpu = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None, reason='needs pip install "jina-jax[tpu]"'
)


@needs_libtpu
@pytest.mark.tpu_compile
def test_a_small_model_fits_a_real_slice():
    model = dataclasses.replace(CONFIG.model, compute_dtype="bfloat16")
    (found,) = plan(dataclasses.replace(CONFIG, model=model), PlanOptions(topology="v5e:2x2"))
    assert (found.compiled.device_kind, found.compiled.devices) == ("TPU v5 lite", 4)
    assert found.compiled.fits
    assert found.compiled.collective_count["all-reduce"] >= 1
    assert 0 < found.roofline.mfu < 1


@needs_libtpu
@pytest.mark.tpu_compile
@pytest.mark.parametrize("gather", ["all_gather", "ring"])
def test_between_two_slices_gradients_and_embeddings_alone_travel(gather):
    model = dataclasses.replace(CONFIG.model, compute_dtype="bfloat16")
    config = dataclasses.replace(
        CONFIG, model=model, mesh=MeshConfig(fsdp=2), loss=LossConfig(gather=gather)
    )
    (one,) = plan(config, PlanOptions(topology="v5e:2x2"))
    (two,) = plan(config, PlanOptions(topology="2xv5e:2x2"))
    assert (two.compiled.device_kind, two.compiled.devices) == ("TPU v5 lite", 8)
    assert BETWEEN_SLICES not in one.compiled.collective_bytes
    assert one.roofline.network_s == 0 < two.roofline.network_s
    parameters = 4 * parameter_count(config.model)
    # A chip holds half of each matrix, and gets the other slice's part of a sum of two chips.
    assert 0 < two.compiled.collective_bytes[BETWEEN_SLICES] < 2 * parameters
    assert "network between slices" in report([two], PlanOptions())
    across = dataclasses.replace(config, mesh=MeshConfig(fsdp=8))
    with pytest.raises(UserError, match=r"does not divide by 2 slices.* divide the 4 devices of"):
        plan(across, PlanOptions(topology="2xv5e:2x2"))


@needs_libtpu
@pytest.mark.tpu_compile
def test_a_state_too_large_is_refused_with_the_compilers_figures():
    model = dataclasses.replace(CONFIG.model, vocab_size=60_000, d_model=20_480)
    request = Request(
        dataclasses.replace(CONFIG, model=model), batch_shape(CONFIG.feed, 0), "v5e:1x1"
    )
    refused = child.run_compile(request, timeout_s=300)
    assert not refused.fits
    assert refused.available_bytes == round(15.75 * 2**30)
    # The embedding table and its two moments at least.
    assert refused.needed_bytes > 3 * 4 * 60_000 * 20_480


@needs_libtpu
@pytest.mark.tpu_compile
def test_every_topology_is_one_that_the_compiler_knows():
    names = [f"{family.name}:{size}" for family in FAMILIES for size in family.slices]
    script = (
        "import json, sys\n"
        "from jina_jax.plan.compile import topology_devices as t\n"
        "print(json.dumps([[len(t(n)), t(n)[0].device_kind, len({d.process_index for d in t(n)})]"
        " for n in sys.argv[1:]]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, *names], env=os.environ | child._TPU_COMPILER,
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    found = json.loads(done.stdout.splitlines()[-1])
    expected = []
    for topology in map(run.find_topology, names):
        # A chip of v4 is two devices to the compiler, which is why it is not planned for.
        devices = topology.chips * (2 if topology.family.usable_hbm_bytes is None else 1)
        expected.append([devices, topology.family.device_kind, topology.hosts_per_slice])
    assert found == expected
