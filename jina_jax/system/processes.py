"""Processes that this one starts, and how this one ends when it cannot go on."""

import ctypes
import faulthandler
import os
import signal
import sys
from typing import NoReturn

from jina_jax.errors import ExitCode
from jina_jax.system.terminal import say

_PR_SET_PDEATHSIG = 1


def die_with_parent(parent: int | None = None) -> None:
    """Ends this process as soon as its parent is gone, however that went.

    Args:
      parent: its process id where it is known; this process ends at once if that is gone already.
    """
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if parent is not None and os.getppid() != parent:
        os._exit(1)


def begin_worker(parent: int, *_: int) -> None:
    """What a worker of the process `parent` does first: it leaves Ctrl-C to that, and ends with it,
    or it would hold memory and write beside whoever resumes the work of a killed one.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    die_with_parent(parent)


def end_at_once(code: ExitCode, message: str) -> NoReturn:
    """Ends a process that hangs: says why and where each thread is, and leaves nothing running.

    Nothing is waited for, since that may hang too. What this process started dies with it.
    """
    say(f"jina-jax: {message}")
    say("where each thread is:")
    faulthandler.dump_traceback(file=sys.__stderr__ or 2, all_threads=True)
    os._exit(code)
