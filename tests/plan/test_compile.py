"""The step is compiled for this machine's devices, in a process that may fail or be killed."""

import dataclasses
import importlib.util
import subprocess
import sys
import threading
import time

import psutil
import pytest

from jina_jax.config import LoraConfig, MeshConfig
from jina_jax.devices.mesh import make_mesh
from jina_jax.errors import UserError
from jina_jax.plan import compiler
from jina_jax.plan.compile import (
    Request,
    abstract_arguments,
    batch_shape,
    compile_step,
    out_of_memory,
)
from jina_jax.plan.run import PlanOptions, plan, report
from jina_jax.train.step import make_train_step
from tests.plan.planned import CONFIG


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


@pytest.mark.slow
def test_with_adapters_the_state_is_the_parameters_and_moments_of_adapters():
    train = dataclasses.replace(CONFIG.train, initial_weights="given")
    plain = dataclasses.replace(CONFIG, mesh=MeshConfig(data=1), train=train)
    config = dataclasses.replace(plain, lora=LoraConfig(2))
    shape = batch_shape(CONFIG.feed, 0)
    requests = [Request(c, shape, "local") for c in (config, plain)]
    found, whole = (compile_step(request, lambda _: None) for request in requests)
    kernels = 4 * 32 * 32 + 2 * 32 * 64
    rest = 64 * 32 + 32 * 4 + 3 * 32
    adapters = 2 * (4 * (32 + 32) + 2 * (32 + 64))
    assert whole.argument_bytes - found.argument_bytes == 4 * (
        3 * (kernels + rest) - (kernels + rest) - 3 * adapters
    )
    assert found.temporary_bytes < whole.temporary_bytes
    assert len({compiler.cache_key(request) for request in requests}) == 2


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


@pytest.mark.slow
def test_a_compilation_ends_with_the_process_that_wants_it():
    arguments = ["-m", "jina_jax.cli", "plan", "demo_from_scratch", "--model.num-layers", "24"]
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
        compiler.run_compile(request, timeout_s=1)


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
