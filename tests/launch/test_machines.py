"""Chips, hosts and names of the machines that runs are started on."""

import math

import pytest

from jina_jax.errors import UserError
from jina_jax.launch.options import GpuMachine, find_machine
from jina_jax.plan.topology import FAMILIES, find_topology


@pytest.mark.parametrize(
    ("name", "hosts", "machine_type", "accelerator_type"),
    [
        # Hosts as the compiler of libtpu 0.0.52 counts them; the names as Google's pages have them.
        ("v4:4x4x4", 16, "ct4p-hightpu-4t", "v4-128"),
        ("v5e:1x1", 1, "ct5lp-hightpu-1t", "v5litepod-1"),
        ("v5e:2x2", 1, "ct5lp-hightpu-4t", "v5litepod-4"),
        ("v5e:2x4", 2, "ct5lp-hightpu-4t", "v5litepod-8"),
        ("v5e:16x16", 64, "ct5lp-hightpu-4t", "v5litepod-256"),
        ("v5p:2x2x1", 1, "ct5p-hightpu-4t", "v5p-8"),
        ("v5p:4x4x4", 16, "ct5p-hightpu-4t", "v5p-128"),
        ("v6e:2x4", 2, "ct6e-standard-4t", "v6e-8"),
        ("v6e:4x4", 4, "ct6e-standard-4t", "v6e-16"),
        ("2xv6e:4x4", 4, "ct6e-standard-4t", "v6e-16"),
    ],
)
def test_slices_as_google_and_the_compiler_have_them(name, hosts, machine_type, accelerator_type):
    machine = find_machine(name)
    assert machine.topology.hosts_per_slice == hosts
    assert machine.machine_type == machine_type
    assert machine.accelerator_type == accelerator_type


def test_every_slice_that_can_be_planned_has_names_and_whole_hosts():
    for family in FAMILIES:
        for size in family.slices:
            for slices in (1, 2):
                name = f"{slices}x{family.name}:{size}"
                topology = find_topology(name)
                assert find_machine(name).topology == topology
                chips = math.prod(int(n) for n in size.split("x"))
                assert topology.chips == chips * slices
                assert topology.hosts_per_slice * topology.chips_per_host == chips
                assert topology.size == size


def test_gpus_are_nodes_of_a_kind():
    assert find_machine("h100:8") == GpuMachine("H100", 1, 8)
    assert find_machine("2xA100:4") == GpuMachine("A100", 2, 4)


def test_an_unknown_machine_is_refused_with_those_that_are_known():
    with pytest.raises(UserError, match=r"(?s)v5e:3x3.*v6e: .*16x16.*a100, h100, h200, l4"):
        find_machine("v5e:3x3")
