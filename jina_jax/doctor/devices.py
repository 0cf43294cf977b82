"""The devices, asked in a process of its own: it may hang or die, and gives its devices back."""

import json
import os
import subprocess
import sys
from pathlib import Path

from jina_jax.doctor.machine import Check

_TIMEOUT_S = 120
_SIGNS = {
    "/dev/nvidia0": ("an NVIDIA GPU", "cuda"),
    "/dev/accel0": ("a TPU", "tpu"),
    "/dev/vfio/0": ("a TPU", "tpu"),
}
"""Files that show an accelerator → (its name, the extra that uses it)."""


def device_check() -> Check:
    """Whether JAX starts, sees what is there, and computes on it."""
    # Where a training runs, the doctor must not take the rest of a GPU's memory.
    environment = os.environ | {"XLA_PYTHON_CLIENT_PREALLOCATE": "false"}
    command = [sys.executable, "-m", "jina_jax.doctor.devices"]
    try:
        # This Python and a module of ours, without a shell.
        done = subprocess.run(  # noqa: S603
            command, capture_output=True, text=True, timeout=_TIMEOUT_S, env=environment,
            check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return Check(
            "devices", "failed", f"JAX did not start within {_TIMEOUT_S} s",
            "end other programs on the devices; on a TPU slice run this on all hosts at once",
        )  # fmt: skip
    if done.returncode != 0:
        last = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        return Check(
            "devices", "failed", last[:300],
            "end other programs on the devices; install jina-jax[tpu] or [cuda] as the drivers are",
        )  # fmt: skip
    found = json.loads(done.stdout.splitlines()[-1])
    detail = f"{found['count']} × {found['kind']} ({found['platform']}), JAX {found['jax']}"
    if found["error"] > found["bound"]:
        return Check(
            "devices", "failed", f"{detail}: a matrix product is wrong by {found['error']:.1e}",
            "update the driver and jaxlib, or take the device out of use",
        )  # fmt: skip
    unused = next((s for path, s in _SIGNS.items() if Path(path).exists()), None)
    if found["platform"] == "cpu" and unused:
        remedy = f'pip install "jina-jax[{unused[1]}]", and leave JAX_PLATFORMS unset'
        return Check("devices", "warning", f"{detail}; {unused[0]} is here and unused", remedy)
    return Check("devices", "ok", detail)


def _look() -> None:
    import jax
    import numpy as np

    devices = jax.devices()
    rng = np.random.default_rng(0)
    a_NN, b_NN = rng.standard_normal((2, 128, 128), np.float32)
    expected_NN = a_NN.astype(np.float64) @ b_NN
    error = 0.0
    for device in jax.local_devices():
        product_NN = jax.device_put(a_NN, device) @ jax.device_put(b_NN, device)
        error = max(error, float(np.abs(np.asarray(product_NN) - expected_NN).max()))
    # Accelerators round the factors to bfloat16 or TF32: 2⁻⁸ of numbers whose sum is about 50.
    bound = 1e-3 if devices[0].platform == "cpu" else 1.0
    found = {
        "count": len(devices),
        "kind": devices[0].device_kind,
        "jax": jax.__version__,
        "platform": devices[0].platform,
        "error": error,
        "bound": bound,
    }
    print(json.dumps(found))


if __name__ == "__main__":
    _look()
