"""Fills the templates: the file that starts a run on a machine."""

import json
import re
import shlex
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from textwrap import indent

from jina_jax.config import RunConfig
from jina_jax.errors import ExitCode
from jina_jax.launch.options import (
    CACHE,
    GRACE_S,
    MOUNT,
    GpuMachine,
    LaunchOptions,
    Target,
    TpuMachine,
)

TEMPLATES: dict[Target, str] = {
    "gke": "gke-jobset.yaml",
    "xpk": "xpk.sh",
    "gce-mig": "gce-mig.sh",
    "queued-resources": "queued-resources.sh",
    "skypilot": "skypilot.yaml",
    "slurm": "slurm.sbatch",
}
_LONGEST_NAME = 40
"""JobSet, pods and hosts add to a name, and 63 letters is the most that DNS takes."""


def render(
    target: Target,
    config_name: str,
    config: RunConfig,
    machine: TpuMachine | GpuMachine,
    options: LaunchOptions,
    flags: Sequence[str],
) -> str:
    """The text of a launch file.

    Args:
      target: how the run is started.
      config_name: CONFIG as it stands on the command line.
      config: what that gives.
      machine: of `options.topology`, or else of the config.
      options: names and paths, which `options.check` has passed.
      flags: further ones of `jina-jax train`.
    """
    name = options.name or config.name
    name = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")[:_LONGEST_NAME].rstrip("-")
    words = _command(target, config_name, config, machine, options, flags)
    command = shlex.join(words)
    final = [str(int(c)) for c in ExitCode if c and not c.may_be_tried_again]
    values = {
        "name": name,
        "mount": MOUNT,
        "cache": CACHE,
        "grace_s": str(GRACE_S),
        "image": options.image,
        "bucket": options.bucket,
        "project": options.project,
        "zone": options.zone,
        "region": options.zone.rpartition("-")[0],
        "cluster": options.cluster,
        "service_account": options.service_account,
        "final_codes": ", ".join(final),
        "final_pattern": "|".join(final),
        "max_restarts": str(options.max_restarts),
        "time_limit": options.time_limit,
        "command": command,
        "quoted_command": shlex.quote(command),
        "command_list": json.dumps(words),
        "config_copy": _config_copy(config_name, options.bucket),
    }
    values |= _of_tpus(machine, name) if isinstance(machine, TpuMachine) else _of_gpus(machine)
    values |= _spot(target, options)
    if isinstance(machine, TpuMachine) and target in ("gce-mig", "queued-resources"):
        values["host"] = _fill(_template("host.sh"), values).rstrip()
    if target == "skypilot":
        values["sky_run"] = indent(_sky_run(command, machine), "  ")
    return _fill(_template(TEMPLATES[target]), values)


def _template(name: str) -> str:
    return (files("jina_jax.launch") / "templates" / name).read_text(encoding="utf-8")


def _fill(text: str, values: dict[str, str]) -> str:
    """Replaces each `@name@`; a line that holds nothing but an empty one goes."""
    empty = "|".join(re.escape(f"@{name}@") for name, value in values.items() if not value)
    if empty:
        text = re.sub(rf"^[ \\]*(?:{empty})[ \\]*\n", "", text, flags=re.MULTILINE)
    return re.sub(r"@([a-z_]+)@", lambda found: values[found[1]], text)


def _command(
    target: Target,
    config_name: str,
    config: RunConfig,
    machine: TpuMachine | GpuMachine,
    options: LaunchOptions,
    flags: Sequence[str],
) -> list[str]:
    workdir, data_dir, cache_dir = options.workdir, options.data_dir, ""
    if target != "slurm":
        workdir, cache_dir = f"{MOUNT}/{config.name}", CACHE
        data_dir = data_dir or f"gs://{options.bucket}/data/{config.name}"
        if _is_file(config_name):
            config_name = f"{MOUNT}/configs/{Path(config_name).name}"
    command = ["jina-jax", "train", config_name]
    given = {"workdir": workdir, "data-dir": data_dir, "cache-dir": cache_dir}
    command += [f"--{key}={value}" for key, value in given.items() if value]
    if _processes(machine) > 1 and not (target == "skypilot" and isinstance(machine, GpuMachine)):
        command.append("--distributed.coordinator=auto")
    return [*command, *flags]


def _sky_run(command: str, machine: TpuMachine | GpuMachine) -> str:
    """SkyPilot tells a node its number and the addresses of all; TPU hosts know theirs."""
    if isinstance(machine, TpuMachine) or machine.nodes == 1:
        return command
    return (
        'first=$(head -n1 <<<"$SKYPILOT_NODE_IPS")\n'
        f"{command} \\\n"
        '  --distributed.coordinator="$first:8476" \\\n'
        '  --distributed.processes="$SKYPILOT_NUM_NODES" \\\n'
        '  --distributed.process-id="$SKYPILOT_NODE_RANK"'
    )


def _processes(machine: TpuMachine | GpuMachine) -> int:
    if isinstance(machine, TpuMachine):
        return machine.topology.hosts_per_slice * machine.topology.slices
    return machine.nodes * machine.gpus_per_node


def _is_file(config_name: str) -> bool:
    return re.match(r".*\.py(?=[:@]|$)", config_name) is not None


def _config_copy(config_name: str, bucket: str) -> str:
    """The line that puts a config file where hosts find it; empty for a shipped one."""
    if not bucket or not _is_file(config_name):
        return ""
    file = re.sub(r"\.py[:@].*", ".py", config_name)
    return f"#   gcloud storage cp {shlex.quote(file)} gs://{bucket}/configs/"


def _of_tpus(machine: TpuMachine, name: str) -> dict[str, str]:
    topology = machine.topology
    one = topology.slices == 1
    return {
        "accelerator": machine.names.gke_accelerator,
        "size": topology.size,
        "slices": str(topology.slices),
        "hosts": str(topology.hosts_per_slice),
        "chips_per_host": str(topology.chips_per_host),
        "chips": str(topology.chips),
        "machine_type": machine.machine_type,
        "accelerator_type": machine.accelerator_type,
        "runtime_version": machine.names.runtime_version,
        "nodes": f"--node-id={name}"
        if one
        else f"--node-count={topology.slices} --node-prefix={name}",
        "node_names": name if one else " ".join(f"{name}-{i}" for i in range(topology.slices)),
        "sky_accelerators": f"tpu-{machine.accelerator_type}",
        "sky_nodes": "1",
        "sky_args": f"accelerator_args: {{runtime_version: {machine.names.runtime_version}}}",
    }


def _of_gpus(machine: GpuMachine) -> dict[str, str]:
    return {
        "nodes": str(machine.nodes),
        "gpus_per_node": str(machine.gpus_per_node),
        "kind": machine.kind,
        "sky_accelerators": f"{machine.kind}:{machine.gpus_per_node}",
        "sky_nodes": str(machine.nodes),
        "sky_args": "",
    }


def _spot(target: Target, options: LaunchOptions) -> dict[str, str]:
    words = {
        "gke": 'cloud.google.com/gke-spot: "true"',
        "xpk": "--spot",
        "gce-mig": "--provisioning-model=SPOT --instance-termination-action=DELETE",
        "queued-resources": "--spot",
        "skypilot": "use_spot: true",
        "slurm": "",
    }
    return {
        "spot": words[target] if options.spot else "",
        "partition": f"#SBATCH --partition={options.partition}" if options.partition else "",
    }
