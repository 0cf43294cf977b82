"""What a launch is given: machines by their rented names, then names, sizes and paths, once for all
ways to start a run.

How many chips and hosts they have is in `jina_jax.plan.topology`, what a chip can do in
`jina_jax.devices.accelerators`. Sources: Google Cloud's pages "Plan TPUs in GKE", "TPU v4",
"TPU v5e", "TPU v5p", "TPU v6e" and "TPU software versions", and the tables of xpk and SkyPilot.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Literal, NamedTuple

import tyro

from jina_jax.devices.accelerators import ACCELERATORS
from jina_jax.errors import UserError
from jina_jax.plan.topology import Topology, find_topology


@dataclass(frozen=True)
class TpuNames:
    """One generation of TPUs at Google Cloud."""

    gke_accelerator: str
    """Value of the node label `cloud.google.com/gke-tpu-accelerator`."""
    machine_type: str
    """Of a host; `{}` stands for its chips."""
    accelerator_type: str
    """Of a slice in the Cloud TPU API and xpk; `{}` stands for its size."""
    units_per_chip: int
    """What that size counts: chips, or the two cores of each."""
    runtime_version: str
    """Software of the hosts in the Cloud TPU API."""
    is_at_compute_engine: bool
    """Whether Compute Engine makes its hosts, as a managed instance group."""


_NAMES = {
    "v4": TpuNames(
        "tpu-v4-podslice", "ct4p-hightpu-{}t", "v4-{}", 2, "tpu-ubuntu2204-base", False
    ),
    "v5e": TpuNames(
        "tpu-v5-lite-podslice", "ct5lp-hightpu-{}t", "v5litepod-{}", 1, "v2-alpha-tpuv5-lite",
        False,
    ),
    "v5p": TpuNames("tpu-v5p-slice", "ct5p-hightpu-{}t", "v5p-{}", 2, "v2-alpha-tpuv5", True),
    "v6e": TpuNames("tpu-v6e-slice", "ct6e-standard-{}t", "v6e-{}", 1, "v2-alpha-tpuv6e", True),
}  # fmt: skip


@dataclass(frozen=True)
class TpuMachine:
    """Slices of TPUs, with their names."""

    topology: Topology
    names: TpuNames

    @property
    def machine_type(self) -> str:
        """Of each host, such as `ct5lp-hightpu-4t`."""
        return self.names.machine_type.format(self.topology.chips_per_host)

    @property
    def accelerator_type(self) -> str:
        """Of each slice, such as `v5litepod-256`."""
        chips = self.topology.chips // self.topology.slices
        return self.names.accelerator_type.format(chips * self.names.units_per_chip)

    @property
    def processes(self) -> int:
        """One for each host."""
        return self.topology.hosts_per_slice * self.topology.slices


@dataclass(frozen=True)
class GpuMachine:
    """Nodes with GPUs, all alike."""

    kind: str
    """As clusters name it: H100."""
    nodes: int
    gpus_per_node: int

    @property
    def processes(self) -> int:
        """One for each GPU, as SLURM starts them."""
        return self.nodes * self.gpus_per_node


def find_machine(name: str) -> TpuMachine | GpuMachine:
    """The machine that `v5e:16x16`, `2xv5e:16x16`, `h100:8` or `2xh100:8` names.

    Raises: UserError naming those that are known.
    """
    kinds = {a.name.split()[0] for a in ACCELERATORS} - {"TPU"}
    gpus = {kind.lower(): kind for kind in kinds}
    found = re.fullmatch(r"(?:([1-9]\d*)x)?([a-z]+\d+):([1-9]\d*)", name.lower())
    if found and found[2] in gpus:
        return GpuMachine(gpus[found[2]], int(found[1] or 1), int(found[3]))
    try:
        topology = find_topology(name)
    except UserError as error:
        raise UserError(
            f"{error}\nor GPUs such as h100:8, or 2xh100:8 for two nodes, of "
            f"{', '.join(sorted(gpus))}"
        ) from None
    return TpuMachine(topology, _NAMES[topology.family.name])


Target = Literal["gke", "xpk", "gce-mig", "queued-resources", "skypilot", "slurm"]

MOUNT = "/runs"
"""Where hosts see the bucket, in the container."""
CACHE = "/cache"
"""Where hosts keep what they know of the prepared data, in the container."""
GRACE_S = 180
"""From the signal that ends a host to its end: the trainer saves in between."""


@dataclass(frozen=True)
class LaunchOptions:
    """Where a run is started."""

    topology: str = ""
    """TPU slices such as v5e:16x16 or 2xv5e:16x16, or GPUs such as h100:8, or 2xh100:8 for two
    nodes; empty takes the machine that the config is set for."""
    image: str = ""
    """Container image, built with launch/Dockerfile (all but slurm)."""
    bucket: str = ""
    """Cloud Storage bucket, mounted on every host: the run folder lies in it (all but slurm)."""
    data_dir: str = ""
    """Prepared shards: a URL, or a folder that every host sees; empty means gs://BUCKET/data/NAME
    (for slurm the config's own)."""
    workdir: str = ""
    """For slurm: the run folder, on a file system that all nodes see; empty means the config's."""
    name: str = ""
    """Of the job; empty takes the run's name."""
    project: str = ""
    """Google Cloud project (xpk, gce-mig, queued-resources)."""
    zone: str = ""
    """Such as us-west4-a (xpk, gce-mig, queued-resources)."""
    cluster: str = ""
    """Cluster that `xpk cluster create` made (xpk)."""
    service_account: str = "jina-jax"
    """Kubernetes service account that may read and write the bucket (gke)."""
    partition: str = ""
    """Of a SLURM cluster; empty takes its default (slurm)."""
    time_limit: str = "24:00:00"
    """Of one allocation; the job asks for the next itself (slurm)."""
    spot: bool = False
    """Take capacity that may be taken away again, for less."""
    max_restarts: int = 100
    """Starts anew after a failure of a host this often (gke, xpk, slurm); preemptions on GKE do
    not count."""


@dataclass(frozen=True)
class Launch:
    """What is started, and how."""

    target: Annotated[Target, tyro.conf.Positional, tyro.conf.arg(metavar="TARGET")]
    """What starts the run."""
    config: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="CONFIG")]
    """A Python file with get_config(), or the name of a shipped config."""
    options: Annotated[LaunchOptions, tyro.conf.arg(name="")]


class _Target(NamedTuple):
    template: str
    needs: tuple[str, ...] = ()
    """Options that have no default."""


TARGETS: dict[Target, _Target] = {
    "gke": _Target("gke-jobset.yaml", ("image", "bucket")),
    "xpk": _Target("xpk.sh", ("image", "bucket", "project", "zone", "cluster")),
    "gce-mig": _Target("gce-mig.sh", ("image", "bucket", "project", "zone")),
    "queued-resources": _Target("queued-resources.sh", ("image", "bucket", "project", "zone")),
    "skypilot": _Target("skypilot.yaml", ("image", "bucket")),
    "slurm": _Target("slurm.sbatch"),
}
_GPU_TARGETS = ("skypilot", "slurm")
_SHELL_SAFE = re.compile(r"[A-Za-z0-9_@%+=:,./-]*")


def check(launch: Launch, machine: TpuMachine | GpuMachine) -> None:
    """Checks that a target gets what it needs.

    Raises: UserError listing everything that is missing or does not go together.
    """
    if problems := list(_problems(launch.target, launch.options, machine)):
        raise UserError(f"{launch.target}: " + "\n  ".join(problems))


def _problems(
    target: Target, options: LaunchOptions, machine: TpuMachine | GpuMachine
) -> Iterator[str]:
    if missing := [n for n in TARGETS[target].needs if not getattr(options, n)]:
        yield f"give {', '.join(f'--{name}' for name in missing)}"
    for name in ("image", "bucket", "data_dir", "workdir", "project", "zone", "cluster",
                 "service_account", "partition", "time_limit"):  # fmt: skip
        if not _SHELL_SAFE.fullmatch(value := getattr(options, name)):
            yield f"--{name.replace('_', '-')} {value!r} holds a blank or another special character"
    if options.max_restarts < 0:
        yield f"--max-restarts {options.max_restarts} must not be negative"
    if "://" in options.bucket:
        yield f"--bucket {options.bucket!r}: give its name alone, without gs://"
    if "://" in options.workdir:
        yield f"--workdir {options.workdir!r}: give a folder that all nodes see, not a URL"
    if isinstance(machine, GpuMachine):
        if target not in _GPU_TARGETS:
            yield f"it has TPUs, and {machine.kind} is a GPU: take {' or '.join(_GPU_TARGETS)}"
        return
    family = machine.topology.family.name
    if target == "slurm":
        yield f"it is for GPUs, and {family} is a TPU: take gke"
    if target == "gce-mig" and not machine.names.is_at_compute_engine:
        yield f"Compute Engine makes no {family} hosts of its own: take gke or queued-resources"
    if target in ("gce-mig", "skypilot") and machine.topology.slices > 1:
        yield f"it starts one slice, not {machine.topology.slices}: take gke or queued-resources"
    if target == "gce-mig" and machine.topology.hosts_per_slice == 1:
        yield f"{machine.topology.slice_name} is one host, which needs no group: take gke"
