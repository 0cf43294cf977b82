"""The `doctor` verb on the command line."""

import dataclasses
import json
import os
import sys
import textwrap
from typing import Annotated

import tyro

from jina_jax.doctor.machine import Check, Checks, guarded
from jina_jax.errors import UserError
from jina_jax.system.credentials import masked

_WIDTH = 100


def doctor(
    what: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="WHAT")] = "",
    full: bool = False,
    json: bool = False,
) -> None:
    """Check the machine, and a run, prepared folder, config or model, and say what helps.

    Looks at Python and the versions of packages, devices (in a process of its own), memory, disk,
    folders and clock; of WHAT also at the configuration, sources, shards, checkpoints and
    tokenizers. Changes nothing. Exit code 1 where a check failed, else 0.

    example: jina-jax doctor runs/demo --full

    Args:
      what: a run folder or its URL, a prepared folder, a CONFIG or an exported folder; none: the
        machine.
      full: also hash every byte of the shards and read all parameters, which takes long.
      json: print a list of {subject, verdict, detail, remedy} instead of the table.
    """
    from jina_jax.doctor.devices import device_check
    from jina_jax.doctor.machine import machine_checks

    checks = [*machine_checks(), device_check()]
    # The devices may be busy with a training: what follows is content with the CPU.
    os.environ["JAX_PLATFORMS"] = "cpu"
    checks += _of(what, full)
    print(masked(_as_json(checks) if json else _as_table(checks)))
    if any(check.verdict == "failed" for check in checks):
        sys.exit(1)


def _of(what: str, full: bool) -> Checks:
    """The checks of what was named."""
    if not what:
        return
    from jina_jax.config.files import RUN_FILE, load_phases, local_folder
    from jina_jax.doctor.run import model_checks, prepared_checks, run_checks
    from jina_jax.inference.initial import with_named_model
    from jina_jax.inference.model_folder import has_weights
    from jina_jax.shards.manifest import MANIFEST_FILE

    folder = local_folder(what)
    if (folder / MANIFEST_FILE).exists():
        yield from prepared_checks(folder, full=full)
    elif has_weights(folder):
        yield from guarded("model", lambda: model_checks(folder))
    elif folder.is_dir() and not (folder / RUN_FILE).exists():
        raise UserError(
            f"{what} is neither a prepared folder (manifest.json) nor a run folder (config.json) "
            f"nor an exported folder (model.safetensors)"
        )
    else:
        try:
            phases = [with_named_model(config) for config in load_phases(what)]
        except UserError as error:
            if not folder.is_dir():
                raise
            yield Check("configuration", "failed", str(error), f"mend {folder / RUN_FILE}")
            return
        for config in phases:
            yield from run_checks(config, full=full)


def _as_json(checks: list[Check]) -> str:
    return json.dumps([dataclasses.asdict(check) for check in checks], indent=1, ensure_ascii=False)


def _as_table(checks: list[Check]) -> str:
    width = max(len(check.subject) for check in checks)
    indent = " " * (width + 11)
    wrap = textwrap.TextWrapper(
        max(_WIDTH, width + 60), break_long_words=False, break_on_hyphens=False,
        subsequent_indent=f"{indent}  ",
    )  # fmt: skip
    lines = []
    for check in checks:
        lines.append(wrap.fill(f"{check.subject:<{width}}  {check.verdict:<7}  {check.detail}"))
        if check.remedy and check.verdict != "ok":
            lines.append(wrap.fill(f"{indent}→ {check.remedy}"))
    counts = {v: sum(c.verdict == v for c in checks) for v in ("ok", "warning", "failed")}
    lines.append(", ".join(f"{n} {verdict}" for verdict, n in counts.items() if n))
    return "\n".join(lines)
