"""The command line: `jina-jax VERB ...`. It and the modules of verbs alone import all others."""

import difflib
import errno
import sys
from collections.abc import Callable, Sequence
from importlib import resources
from typing import Any

import tyro

from jina_jax.cli.arguments import config_verb
from jina_jax.cli.doctor import doctor
from jina_jax.cli.inspect import inspect, plan, report, show_config
from jina_jax.cli.launch import launch
from jina_jax.cli.model import encode, import_model, merge, mteb, negation_score, search
from jina_jax.cli.run import (
    ablate,
    demo,
    evaluate,
    export,
    mine,
    negation,
    new,
    prepare,
    run,
    train,
)
from jina_jax.config.files import config_names, each_phase
from jina_jax.errors import NO_RIGHT, ExitCode, Interrupted, RunFailed, UserError
from jina_jax.system.credentials import masked
from jina_jax.system.terminal import end_of_standard_error, say, silence

_CONFIG_VERBS: dict[str, Callable[[Any], None]] = {
    "demo": demo,
    "prepare": prepare,
    "train": train,
    "evaluate": evaluate,
    "export": export,
    "negation": negation,
    "mine": mine,
    "run": run,
    "show-config": show_config,
    "plan": plan,
    "ablate": ablate,
    "launch": launch,
}
_PARSE_THEMSELVES = ("demo", "prepare", "run", "plan", "ablate", "launch")
"""They take arguments; the others the configuration of a phase."""
_PLAIN_VERBS: dict[str, Callable[..., None]] = {
    "new": new,
    "encode": encode,
    "import": import_model,
    "merge": merge,
    "search": search,
    "negation-score": negation_score,
    "mteb": mteb,
    "inspect": inspect,
    "report": report,
    "doctor": doctor,
}

_ELSEWHERE = {
    "prepare": "--data-dir",
    "train": "--workdir",
    "export": "--export.output-dir",
    "negation": "--negation.output-dir",
    "mine": "--mine.output-dir",
    "run": "--workdir",
    "demo": "--workdir",
    "ablate": "--workdir",
    "encode": "OUT",
    "import": "RUN",
    "merge": "OUT",
    "mteb": "--output",
    "report": "--output",
    "inspect": "--plot",
}
"""Verb → the argument that says where its files go."""


def _dispatch(verb: str, args: list[str]) -> None:
    if verb in _PARSE_THEMSELVES:
        _CONFIG_VERBS[verb](args)
    elif verb in _CONFIG_VERBS:
        function = _CONFIG_VERBS[verb]
        for phase_args in each_phase(args):
            function(config_verb(verb, function.__doc__ or "", phase_args))
    elif verb in _PLAIN_VERBS:
        tyro.cli(_PLAIN_VERBS[verb], prog=f"jina-jax {verb}", args=args)
    else:
        verbs = [*_CONFIG_VERBS, *_PLAIN_VERBS]
        close = difflib.get_close_matches(verb, verbs, 1)
        hint = f"did you mean {close[0]!r}?" if close else f"verbs: {', '.join(verbs)}"
        raise UserError(f"no verb {verb!r}; {hint}")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command line.

    Returns: the exit code, as `errors.ExitCode` lists them.
    """
    try:
        return _main(list(sys.argv[1:] if argv is None else argv))
    finally:
        end_of_standard_error()


def _main(args: list[str]) -> int:
    try:
        if not args or args[0] in ("-h", "--help", "help"):
            usage = resources.files("jina_jax.cli").joinpath("usage.txt").read_text("utf-8")
            print(usage.format(configs=", ".join(config_names())), flush=True)
            return 0
        if args[0] == "--version":
            from jina_jax import __version__

            print(f"jina-jax {__version__}")
            return 0
        _dispatch(args[0], args[1:])
    except (UserError, RunFailed, Interrupted) as error:
        say(f"jina-jax {args[0]}: {masked(str(error), args)}")
        return ExitCode.USER_ERROR if isinstance(error, UserError) else error.exit_code
    except KeyboardInterrupt:
        say("\nstopped; the same command goes on from what is written")
        return 130
    except BrokenPipeError:
        # The reader of our output (`| head`) is gone: no error, and nothing left to say it to.
        silence(sys.stdout)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            code, remedy = ExitCode.SAVE_FAILED, "make room; nothing finished is lost"
        elif error.errno in NO_RIGHT:
            code, remedy = ExitCode.USER_ERROR, "ask its owner for the right"
            if args[0] in _ELSEWHERE:
                remedy += f", or give another {_ELSEWHERE[args[0]]}"
        else:
            raise
        say(f"jina-jax {args[0]}: {masked(str(error), args)}: {remedy}")
        return code
    return 0
