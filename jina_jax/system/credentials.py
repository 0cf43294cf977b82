"""Passwords, keys and tokens: found where they don't belong, and kept out of messages.

A configuration is printed, saved with each checkpoint and copied to the model card, so none may
stand in it. Libraries find theirs in the environment or in files of their own.
"""

import os
import re
from collections.abc import Sequence

_SHAPES = {
    # A path that was made of an address has one slash alone.
    "a user and password": re.compile(r"(?<=:/)/?[^/\s@'\"]*:[^/\s@'\"]*(?=@)"),
    "a key in its address": re.compile(
        r"(?i)(?<=[?&])(?:[\w-]*[-_])?(?:access|api|auth)?"
        r"(?:token|signature|sig|password|pwd|secret|key)=[^&\s'\"]+"
    ),
    "a token": re.compile(
        r"\b(?:hf_[A-Za-z0-9]{20,}|sk-[\w-]{20,}|gh[pousr]_\w{30,}|AKIA[0-9A-Z]{16}|AIza[\w-]{35})"
    ),
}
_NAMES = re.compile(r"TOKEN|SECRET|PASSWORD|PASSWD|CREDENTIAL|API_?KEY|ACCESS_?KEY", re.IGNORECASE)
_SHORTEST_SECRET = 8
"""Characters; shorter ones occur by chance."""


def credential_in(text: str) -> str:
    """What kind of credential a text holds, in words; empty where it seems to hold none."""
    return next((kind for kind, shape in _SHAPES.items() if shape.search(text)), "")


def masked(text: str, given: Sequence[str] = ()) -> str:
    """The text with `***` for what looks like a credential or is one of the environment's.

    Args:
      text: a message.
      given: words of the command line: parts of a credential in these are masked by themselves.
    """
    secrets = [value for name, value in os.environ.items() if _NAMES.search(name)]
    for word in given:
        for shape in _SHAPES.values():
            secrets += [part for m in shape.finditer(word) for part in re.split("[/:=]", m[0])]
    for secret in secrets:
        if len(secret) >= _SHORTEST_SECRET:
            text = text.replace(secret, "***")
    for shape in _SHAPES.values():
        text = shape.sub("***", text)
    return text
