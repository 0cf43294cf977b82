"""Several processes that train as one: how they start and agree.

Every process runs the identical command. Each reads every batch and puts its own devices' part on
them; the first alone writes metrics and run files, and all write their parts of a checkpoint.
"""

import hashlib
import os
import threading

import jax
import numpy as np
from jax.experimental import multihost_utils

from jina_jax.config import DistributedConfig
from jina_jax.errors import ExitCode, UserError
from jina_jax.system.terminal import say

CLUSTER = "auto"
"""Asks the cluster (Cloud TPU, GKE, SLURM, Open MPI) where the processes are."""


def start(config: DistributedConfig, heartbeat_s: float) -> None:
    """Joins the processes of a run, before JAX looks for its devices.

    Args:
      config: where they are.
      heartbeat_s: seconds after which `HostWatch` takes a process for lost.
    Raises: UserError when the others do not come in time, or this is one host of a TPU slice and
      the configuration says nothing of the others.
    """
    hosts = [h for h in os.environ.get("TPU_WORKER_HOSTNAMES", "").split(",") if h]
    if not config.coordinator:
        if len(hosts) > 1:
            raise UserError(
                f"this is one of {len(hosts)} hosts of a TPU slice; run the same command on each, "
                f"with --distributed.coordinator {CLUSTER}"
            )
        return
    if jax.distributed.is_initialized():
        return
    given: dict[str, object] = {}
    if config.coordinator != CLUSTER:
        given = {
            "coordinator_address": config.coordinator,
            "num_processes": config.processes,
            "process_id": config.process_id,
        }
    who = f"process {config.process_id} of {config.processes}" if given else "this process"
    text = (
        f"{who} could not join the others at distributed.coordinator={config.coordinator} within "
        f"{config.timeout_s} s; check that every process runs this command with a "
        f"--distributed.process-id of its own, that all reach the coordinator's port, and that no "
        f"earlier run still holds it"
    )
    # When JAX's own time is over it aborts the process with a stack trace, so ours is over first.
    timer = threading.Timer(config.timeout_s, _give_up, (text,))
    timer.daemon = True
    timer.start()
    try:
        jax.distributed.initialize(
            **given,  # type: ignore[arg-type]
            initialization_timeout=config.timeout_s + 60,
            # `HostWatch` is first, and says who is lost.
            heartbeat_timeout_seconds=max(10, round(3 * heartbeat_s)),
        )
    except (RuntimeError, ValueError) as error:
        raise UserError(
            f"{who} could not start with distributed.coordinator={config.coordinator}: {error}"
        ) from error
    finally:
        timer.cancel()


def _give_up(text: str) -> None:
    say(f"jina-jax: {text}")
    os._exit(ExitCode.USER_ERROR)


def is_first() -> bool:
    """Whether this process writes what is written once."""
    return jax.process_index() == 0


def check_agreement(text: str) -> None:
    """All processes must have been given the same `text`, such as a configuration.

    Raises: UserError on every process when they have not.
    """
    if jax.process_count() == 1:
        return
    digest = np.frombuffer(hashlib.sha256(text.encode()).digest(), np.uint8)
    of_all = np.asarray(multihost_utils.process_allgather(digest))
    if differing := [i for i, other in enumerate(of_all) if (other != of_all[0]).any()]:
        raise UserError(
            f"processes {', '.join(map(str, differing))} have another configuration, other data or "
            f"another checkpoint than process 0: give every process the same command and folders"
        )
