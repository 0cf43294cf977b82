"""A disk of few bytes."""

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest


@contextmanager
def small_disk(path: Path, size: str) -> Iterator[Path | None]:
    """A file system of its own at a new folder; gives None where there is no right to mount.

    Args:
      path: of the folder.
      size: as `mount` takes it, such as `12m`.
    """
    path.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size}", "none", str(path)]
    if os.geteuid() or subprocess.run(mount, capture_output=True).returncode:
        yield None
        return
    try:
        yield path
    finally:
        subprocess.run(["umount", "-l", str(path)], check=True)


@contextmanager
def mounted(path: Path, size: str) -> Iterator[Path]:
    """The same; skips the test where there is no right to mount."""
    with small_disk(path, size) as disk:
        if disk is None:
            pytest.skip("mounting a small disk needs root")
        yield disk
