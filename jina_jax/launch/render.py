"""Fills the templates: the file that starts a run on a machine."""

import json
import re
import shlex
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path

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

_TEMPLATES: dict[Target, str] = {
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
      options: names and paths, which `check` has passed.
      flags: further ones of `jina-jax train`.
    """
    import jinja2

    folder = files("jina_jax.launch") / "templates"
    environment = jinja2.Environment(
        loader=jinja2.FunctionLoader(lambda file: (folder / file).read_text(encoding="utf-8")),
        # These are no pages of HTML.
        autoescape=False,  # noqa: S701
        undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True,
        keep_trailing_newline=True,
    )  # fmt: skip
    environment.filters |= {"json": json.dumps, "quote": shlex.quote}
    name = re.sub(r"[^a-z0-9]+", "-", (options.name or config.name).lower()).strip("-")
    is_file = re.match(r".*\.py(?=[:@]|$)", config_name) is not None
    words = _command(target, config_name, config, machine, options, is_file)
    return environment.get_template(_TEMPLATES[target]).render(
        name=name[:_LONGEST_NAME].rstrip("-"), options=options, machine=machine,
        topology=machine.topology if isinstance(machine, TpuMachine) else None,
        mount=MOUNT, cache=CACHE, grace_s=GRACE_S,
        words=[*words, *flags], command=shlex.join([*words, *flags]),
        config_file=re.sub(r"\.py[:@].*", ".py", config_name) if is_file else "",
        final_codes=[int(code) for code in ExitCode if code and not code.may_be_tried_again],
    )  # fmt: skip


def _command(
    target: Target,
    config_name: str,
    config: RunConfig,
    machine: TpuMachine | GpuMachine,
    options: LaunchOptions,
    is_file: bool,
) -> list[str]:
    workdir, data_dir, cache_dir = options.workdir, options.data_dir, ""
    if target != "slurm":
        workdir, cache_dir = f"{MOUNT}/{config.name}", CACHE
        data_dir = data_dir or f"gs://{options.bucket}/data/{config.name}"
        if is_file:
            config_name = f"{MOUNT}/configs/{Path(config_name).name}"
    command = ["jina-jax", "train", config_name]
    given = {"workdir": workdir, "data-dir": data_dir, "cache-dir": cache_dir}
    command += [f"--{key}={value}" for key, value in given.items() if value]
    # SkyPilot tells the nodes of GPUs about each other: the template adds what they need.
    if machine.processes > 1 and not (target == "skypilot" and isinstance(machine, GpuMachine)):
        command.append("--distributed.coordinator=auto")
    return command
