"""Fills the templates: the file that starts a run on a machine."""

import json
import re
import shlex
from collections.abc import Sequence
from pathlib import Path

from jina_jax.config import RunConfig
from jina_jax.errors import ExitCode
from jina_jax.launch.options import (
    CACHE,
    GRACE_S,
    MOUNT,
    TARGETS,
    GpuMachine,
    Launch,
    TpuMachine,
)

_LONGEST_NAME = 40
"""JobSet, pods and hosts add to a name, and 63 letters is the most that DNS takes."""


def render(
    launch: Launch, config: RunConfig, machine: TpuMachine | GpuMachine, flags: Sequence[str]
) -> str:
    """The text of a launch file.

    Args:
      launch: what is asked for, which `check` has passed.
      config: what its CONFIG gives.
      machine: of its topology, or else of the config.
      flags: further ones of `jina-jax train`.
    """
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("jina_jax.launch"),
        # These are no pages of HTML.
        autoescape=False,  # noqa: S701
        undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True,
        keep_trailing_newline=True,
    )  # fmt: skip
    environment.filters |= {"json": json.dumps, "quote": shlex.quote}
    options = launch.options
    name = re.sub(r"[^a-z0-9]+", "-", (options.name or config.name).lower()).strip("-")
    file = re.match(r".*\.py(?=[:@]|$)", launch.config)
    words = [*_command(launch, config, machine, file is not None), *flags]
    return environment.get_template(TARGETS[launch.target].template).render(
        name=name[:_LONGEST_NAME].rstrip("-"), options=options, machine=machine,
        topology=machine.topology if isinstance(machine, TpuMachine) else None,
        mount=MOUNT, cache=CACHE, grace_s=GRACE_S,
        words=words, command=shlex.join(words), config_file=file[0] if file else "",
        final_codes=[int(code) for code in ExitCode if code and not code.may_be_tried_again],
    )  # fmt: skip


def _command(
    launch: Launch, config: RunConfig, machine: TpuMachine | GpuMachine, is_file: bool
) -> list[str]:
    options, name = launch.options, launch.config
    workdir, data_dir, cache_dir = options.workdir, options.data_dir, ""
    if launch.target != "slurm":
        workdir, cache_dir = f"{MOUNT}/{config.name}", CACHE
        data_dir = data_dir or f"gs://{options.bucket}/data/{config.name}"
        if is_file:
            name = f"{MOUNT}/configs/{Path(name).name}"
    command = ["jina-jax", "train", name]
    given = {"workdir": workdir, "data-dir": data_dir, "cache-dir": cache_dir}
    command += [f"--{key}={value}" for key, value in given.items() if value]
    # SkyPilot tells the nodes of GPUs about each other: the template adds what they need.
    are_told = launch.target == "skypilot" and isinstance(machine, GpuMachine)
    if machine.processes > 1 and not are_told:
        command.append("--distributed.coordinator=auto")
    return command
