"""A folder that appears whole or not at all, whatever kills the process that makes it."""

import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from jina_jax.errors import UserError


@contextmanager
def workspace(folder: Path) -> Iterator[Path]:
    """Gives an empty folder to fill and, when the block ends well, renames it to `folder`.

    What an earlier, killed process left of its own attempt is removed. On an error nothing stays.

    Args:
      folder: to appear; absent or empty when the block ends.
    Returns: the folder to fill, beside `folder`.
    Raises: UserError when another process is making the same folder.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    partial = folder.with_name(f".{folder.name}.partial")
    with _lock(folder.with_name(f".{folder.name}.lock"), folder):
        if folder.exists() and any(folder.iterdir()):
            raise UserError(f"{folder} appeared meanwhile: another process made it; run again")
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir()
        try:
            yield partial
            partial.rename(folder)
        finally:
            shutil.rmtree(partial, ignore_errors=True)


@contextmanager
def _lock(path: Path, folder: Path) -> Iterator[None]:
    # The kernel drops a lock with its process, which a file that only has to exist cannot do.
    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            held = path.exists() and os.path.samestat(os.fstat(file.fileno()), path.stat())
        except BlockingIOError:
            held = False
        if not held:
            raise UserError(f"another process is preparing {folder}; wait for it to end")
        try:
            yield
        finally:
            path.unlink(missing_ok=True)
