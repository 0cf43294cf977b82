"""Mirrors of run folders whose URLs are in fsspec's memory."""

import itertools
from contextlib import contextmanager

from fsspec.implementations.memory import MemoryFileSystem

from jina_jax.system import files
from jina_jax.system.mirror import Mirror

_NUMBERS = itertools.count()


@contextmanager
def mirror_of_memory(folder, monkeypatch):
    """One of a run that begins, whose store is asked once and no more."""
    monkeypatch.setattr(files, "WAITS_S", ())
    mirror = Mirror(f"memory://mirrored-{next(_NUMBERS)}/run", folder)
    mirror.make(may_begin=True)
    yield mirror
    MemoryFileSystem.store.clear()
