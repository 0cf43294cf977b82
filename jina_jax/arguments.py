"""From what stands behind a verb on the command line to a configuration."""

import textwrap
from collections.abc import Callable, Sequence
from typing import TypeVar

import tyro

from jina_jax.config import RunConfig
from jina_jax.config_file import config_names, load_config
from jina_jax.errors import UserError
from jina_jax.validation import validate

_T = TypeVar("_T")


def config_verb(verb: str, text: str, args: Sequence[str]) -> RunConfig:
    """Parses `CONFIG --overrides` of a verb; prints the verb's help when asked."""
    config = parse(verb, text, args, RunConfig, lambda shipped: shipped)
    validate(config)
    return config


def parse(
    verb: str, text: str, args: Sequence[str], parsed: type[_T], default: Callable[[RunConfig], _T]
) -> _T:
    """Parses the arguments after `CONFIG`, with the values of that config as defaults."""
    wants_help = any(a in ("-h", "--help") for a in args)
    names = [a for a in args if not a.startswith("-")][:1] if args and args[0][0] != "-" else []
    if not names and not wants_help:
        raise UserError(
            f"`jina-jax {verb}` needs a config: a Python file with get_config(), or one of: "
            f"{', '.join(config_names())}. For example: jina-jax {verb} demo"
        )
    config = load_config(names[0]) if names else RunConfig(name="NAME")
    _refuse_fullwidth(args)
    return tyro.cli(
        parsed,
        prog=f"jina-jax {verb} {names[0] if names else 'CONFIG'}",
        description=textwrap.dedent(text).strip(),
        default=default(config),
        args=list(args[len(names) :]),
    )


def _refuse_fullwidth(args: Sequence[str]) -> None:
    """Full-width digits parse as numbers in Python; typed here, they are a slip."""
    for arg in args:
        if arg.startswith("--") or not any("\uff00" <= c <= "\uffef" for c in arg):
            continue
        raise UserError(f"{arg!r} holds full-width characters; type it in plain ASCII")
