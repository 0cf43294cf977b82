"""From what stands behind a verb on the command line to a configuration."""

import inspect
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, TypeVar

import tyro

from jina_jax.config import Ablation, RunConfig
from jina_jax.config.files import config_names, load_config
from jina_jax.config.validation import validate
from jina_jax.errors import UserError

_T = TypeVar("_T")
_NO_RUN = RunConfig(name="NAME")


def config_verb(verb: str, text: str, args: Sequence[str]) -> RunConfig:
    """Parses `CONFIG --overrides` of a verb; prints the verb's help when asked."""
    config = parse(verb, text, args, RunConfig, lambda shipped: shipped)
    validate(config)
    return config


def parse(
    verb: str, text: str, args: Sequence[str], parsed: type[_T], default: Callable[[Any], _T],
    load: Callable[[str], Any] = load_config, empty: Any = _NO_RUN, example: str = "demo",
) -> _T:  # fmt: skip
    """Parses the arguments after `CONFIG`, with the values of that config as defaults.

    Args:
      verb: of the command line.
      text: its help.
      args: what stands behind it.
      parsed: a dataclass of everything that can be given.
      default: from what `load` gives to such a dataclass.
      load: reads a config by its name.
      empty: stands in for it where help is asked for without a config.
      example: a shipped config that the verb takes.
    """
    wants_help = any(a in ("-h", "--help") for a in args)
    names = [a for a in args if not a.startswith("-")][:1] if args and args[0][0] != "-" else []
    if not names and not wants_help:
        raise UserError(
            f"`jina-jax {verb}` needs a config: a Python file with get_config(), or one of: "
            f"{', '.join(config_names())}. For example: jina-jax {verb} {example}"
        )
    config = _with_model(load(names[0]) if names else empty)
    _refuse_fullwidth(args)
    return tyro.cli(
        parsed,
        prog=f"jina-jax {verb}" + ("" if verb in names else f" {names[0] if names else 'CONFIG'}"),
        description=inspect.cleandoc(text),
        default=default(config),
        args=list(args[len(names) :]),
        # Of a model the family is that of the config.
        config=(tyro.conf.AvoidSubcommands,),
    )


def _with_model(config: Any) -> Any:
    """A run or an ablation, with the model that it names read."""
    if isinstance(config, Ablation):
        return replace(config, base=_with_model(config.base))
    if not isinstance(config, RunConfig) or not isinstance(config.model, str):
        return config
    # Of the model's room, and so of jax, only where a folder is to be read.
    from jina_jax.inference.initial import with_named_model

    return with_named_model(config)


def _refuse_fullwidth(args: Sequence[str]) -> None:
    """Full-width digits parse as numbers in Python; typed here, they are a slip."""
    for arg in args:
        if arg.startswith("--") or not any("\uff00" <= c <= "\uffef" for c in arg):
            continue
        raise UserError(f"{arg!r} holds full-width characters; type it in plain ASCII")
