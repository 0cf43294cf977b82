"""A disk of few bytes."""

import os
import subprocess
from contextlib import contextmanager

import pytest


@contextmanager
def mounted(path, size):
    """A file system of its own at a new folder; skips the test where there is no right to mount.

    Args:
      path: of the folder.
      size: as `mount` takes it, such as `12m`.
    """
    path.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size}", "none", str(path)]
    if os.geteuid() or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("mounting a small disk needs root")
    yield path
    subprocess.run(["umount", "-l", str(path)], check=True)
