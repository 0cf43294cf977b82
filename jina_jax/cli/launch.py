"""`jina-jax launch`: the file that starts a run on a pod or a cluster."""

import inspect
from collections.abc import Sequence

import tyro

from jina_jax.cli.arguments import config_verb
from jina_jax.errors import UserError
from jina_jax.launch.options import Launch, check, find_machine
from jina_jax.launch.render import render


def launch(args: Sequence[str]) -> None:
    """Print the file that starts a run on a TPU pod or a GPU cluster. Nothing is started.

    Names, sizes and paths are given here, once; chips, hosts and node labels follow from
    --topology, as `jina-jax plan` knows it. What stands behind `--` goes to `jina-jax train`, and
    is checked now rather than on the pod. Each file says at its head how it is tried without
    renting anything, and how it is started.

      gke               a JobSet for GKE: restarts, preemption, several slices; take this for TPUs
      xpk               the same through xpk, on a cluster that xpk made
      gce-mig           a managed instance group of Compute Engine (v5p, v6e)
      queued-resources  the Cloud TPU API, which Google keeps for what exists (v4 to v6e)
      skypilot          SkyPilot, for TPUs or GPUs of any cloud
      slurm             a batch file for a GPU cluster

    A config file goes into the bucket: each file's head has the command. The shards are read from
    a URL (`jina-jax prepare CONFIG --data-dir gs://BUCKET/data/NAME` puts them there), the run
    folder lies in the bucket.

    example: jina-jax launch gke base@v5e:16x16 --image IMAGE --bucket BUCKET -- --train.seed 1
    """
    end = list(args).index("--") if "--" in args else len(args)
    given = tyro.cli(
        Launch, prog="jina-jax launch", description=inspect.cleandoc(launch.__doc__ or ""),
        args=list(args[:end]),
    )  # fmt: skip
    flags = list(args[end + 1 :])
    config = config_verb("train", "", [given.config, *flags])
    if not (name := given.options.topology or config.machine):
        raise UserError(f"{given.config} is set for no machine: give --topology, as in v5e:16x16")
    machine = find_machine(name)
    check(given, machine)
    print(render(given, config, machine, flags), end="")
