"""What the machines of a run are called by those who rent them out.

How many chips and hosts they have is in `jina_jax.plan.topology`, what a chip can do in
`jina_jax.devices.accelerators`. Sources: Google Cloud's pages "Plan TPUs in GKE", "TPU v4",
"TPU v5e", "TPU v5p", "TPU v6e" and "TPU software versions", and the tables of xpk and SkyPilot.
"""

import re
from dataclasses import dataclass

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


@dataclass(frozen=True)
class GpuMachine:
    """Nodes with GPUs, all alike."""

    kind: str
    """As clusters name it: H100."""
    nodes: int
    gpus_per_node: int


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
