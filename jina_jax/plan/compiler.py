"""Compiles in a process of its own, and keeps the result in the cache folder of the user."""

import dataclasses
import importlib.util
import json
import os
import pickle
import signal
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from jina_jax.errors import UserError
from jina_jax.plan.compile import Compiled, Request
from jina_jax.plan.topology import LOCAL
from jina_jax.system.atomic import write_atomically
from jina_jax.system.environment import package_key, package_version
from jina_jax.system.hashing import content_key
from jina_jax.system.terminal import say

_SECTIONS = ("model", "pooling", "mesh", "feed", "loss", "optim", "lora", "train")
"""Parts of a configuration that the step depends on."""
_TPU_COMPILER = {
    # Without these, libtpu asks a metadata server that isn't there who it is.
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_WORKER_ID": "0",
    "TPU_MIN_LOG_LEVEL": "3",
    # It takes a lock, as if it drove a chip, and refuses a second process.
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    # Arrays and attached devices have no part in it.
    "JAX_PLATFORMS": "cpu",
}


def compiled_step(request: Request, *, timeout_s: float, fresh: bool) -> Compiled:
    """The result of an earlier run, or else that of `run_compile`, which is kept.

    Nothing is kept of this machine's own devices.

    Args:
      request: what to compile.
      timeout_s: as for `run_compile`.
      fresh: compile what was compiled before.
    Raises: UserError as `run_compile` does.
    """
    if request.topology == LOCAL:
        return run_compile(request, timeout_s=timeout_s)
    path = cache_folder() / f"{cache_key(request)}.json"
    if path.exists() and not fresh:
        return Compiled(**json.loads(path.read_text(encoding="utf-8")))
    compiled = run_compile(request, timeout_s=timeout_s)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, json.dumps(dataclasses.asdict(compiled)).encode())
    return compiled


def run_compile(request: Request, *, timeout_s: float) -> Compiled:
    """Compiles in a process of its own.

    Args:
      request: what to compile.
      timeout_s: ends the process after so long.
    Raises: UserError when the compiler is missing, fails or takes too long.
    """
    # A program from JAX's own cache would not be compiled, and so not be dumped to be read.
    environment = os.environ | {"JAX_ENABLE_COMPILATION_CACHE": "false"}
    if request.topology != LOCAL:
        if importlib.util.find_spec("libtpu") is None:
            raise UserError(
                f"compiling for {request.topology} needs the TPU compiler, which is not "
                f'installed: pip install "jina-jax[tpu]" (no TPU is needed)'
            )
        environment |= _TPU_COMPILER
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "jina_jax.plan.compile"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, env=environment,
        )  # fmt: skip
        out_of_time = threading.Event()

        def stop() -> None:
            out_of_time.set()
            process.kill()

        timer = threading.Timer(timeout_s, stop)
        timer.start()
        try:
            answer = _converse(process, request)
        finally:
            timer.cancel()
            process.kill()
            process.wait()
        if "result" in answer:
            return Compiled(**answer["result"])
        if "user_error" in answer:
            raise UserError(answer["user_error"])
        if out_of_time.is_set():
            raise UserError(
                f"compiling took more than {timeout_s:g} s and was stopped; give it longer with "
                f"--timeout-s, or scan the layers, which compiles faster"
            )
        log.seek(0)
        last_lines = log.read().decode(errors="replace").strip().splitlines()[-5:]
        raise UserError(
            f"the compiler {_ended(process.returncode)}; the last it said:\n  "
            + "\n  ".join(last_lines)
        )


def _ended(returncode: int) -> str:
    """How a process that gave no answer came to its end."""
    if returncode >= 0:
        return f"failed with exit status {returncode}"
    name = signal.Signals(-returncode).name
    short = ", perhaps for lack of memory on this machine" if name == "SIGKILL" else ""
    return f"was ended by {name}{short}"


def _converse(process: "subprocess.Popen[bytes]", request: Request) -> dict[str, Any]:
    """Sends the request, says what progress comes back, and returns the answer."""
    assert process.stdin is not None and process.stdout is not None
    began = time.monotonic()
    with suppress(BrokenPipeError):  # The exit status is reported below.
        process.stdin.write(pickle.dumps(request))
        process.stdin.close()
    for line in process.stdout:
        reply = json.loads(line)
        if "progress" not in reply:
            return dict(reply)
        say(f"plan: {reply['progress']} ({time.monotonic() - began:.0f} s)")
    process.wait()  # sets the exit status, which says why no answer came
    return {}


def cache_folder() -> Path:
    """Where results lie: below `XDG_CACHE_HOME`, or `~/.cache`."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "jina_jax" / "plan"


def cache_key(request: Request) -> str:
    """Names a result: by configuration, batch, topology, versions and this package's own code."""
    config = dataclasses.asdict(request.config)
    dependencies = {
        "config": {section: config[section] for section in _SECTIONS},
        "shape": dataclasses.asdict(request.shape),
        "topology": request.topology,
        "versions": {
            name: package_version(name) for name in ("jax", "jaxlib", "flax", "optax", "libtpu")
        },
        "code": package_key(),
    }
    return content_key(dependencies)
