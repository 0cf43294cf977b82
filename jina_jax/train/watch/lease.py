"""One trainer a run folder, also where hosts share it.

The kernel's lock on a file tells of a trainer on this machine at once, however it ended. Another
machine's is told by the lease: a file that its holder writes anew every few seconds.
"""

import json
import os
import socket
import threading
import time
import uuid
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from jina_jax.devices.distributed import is_first, share_problem
from jina_jax.errors import ExitCode, UserError
from jina_jax.system.atomic import write_atomically
from jina_jax.system.processes import end_at_once
from jina_jax.system.terminal import say
from jina_jax.system.untrusted import parse_json

LEASE_FILE = "trainer.json"
"""In a run folder: who trains there."""
_RENEWALS = 6
"""In the time after which a silent holder counts as gone."""


class Lease:
    """The right to train in a run folder, of the first process for all."""

    def __init__(self, folder: Path, silent_s: float):
        """Args: the run folder, and after how many seconds of silence a holder is gone."""
        self._path, self._silent_s = folder / LEASE_FILE, silent_s
        self._lock = FileLock(folder / f".{LEASE_FILE}.lock", blocking=False)
        self._token, self._beats = uuid.uuid4().hex, 0
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._renew, name="lease", daemon=True)

    def __enter__(self) -> "Lease":
        """Takes it.

        Raises: UserError, in all processes of a run, while another trainer holds it.
        """
        problem = ""
        if is_first():
            try:
                self._take()
                self._thread.start()
            except UserError as error:
                self._lock.release()
                problem = str(error)
        share_problem(problem)
        return self

    def __exit__(self, *_: object) -> None:
        if is_first():
            self._closed.set()
            self._thread.join()
            if self._holder().get("token") == self._token:
                self._path.unlink(missing_ok=True)
            self._lock.release()

    def _take(self) -> None:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        is_locked = True
        try:
            self._lock.acquire()
        except Timeout as error:
            raise self._refusal(self._holder()) from error
        except NotImplementedError:
            is_locked = False  # The file system knows no locks.
        holder = self._holder()
        if holder and not (is_locked and holder.get("host") == socket.gethostname()):
            self._wait_for_silence(holder)
        self._write()
        if not is_locked or holder:
            # Another may have waited for the same silence.
            time.sleep(min(1.0, self._silent_s / _RENEWALS))
            if (taken := self._holder()).get("token") != self._token:
                raise self._refusal(taken)

    def _wait_for_silence(self, holder: dict[str, Any]) -> None:
        say(
            f"{holder.get('host')} began to train in {self._path.parent}: waiting "
            f"{self._silent_s:g} s (faults.heartbeat_s) to see whether it still does"
        )
        end = time.monotonic() + self._silent_s
        while time.monotonic() < end:
            time.sleep(self._silent_s / _RENEWALS / 4)
            now = self._holder()
            if not now:
                return
            if now != holder:
                raise self._refusal(now)

    def _refusal(self, holder: dict[str, Any]) -> UserError:
        who = f"process {holder.get('pid', '?')} on {holder.get('host', 'this machine')}"
        return UserError(
            f"{self._path.parent} is being trained in by {who}; nothing was changed. Wait until "
            f"it ends, stop it, or train in another folder with --workdir"
        )

    def _holder(self) -> dict[str, Any]:
        """What the lease says; nothing where there is none that can be read."""
        try:
            values = parse_json(self._path.read_bytes())
        except (OSError, ValueError):
            return {}
        return values if isinstance(values, dict) else {}

    def _write(self) -> None:
        self._beats += 1
        lease = {"host": socket.gethostname(), "pid": os.getpid(), "token": self._token,
                 "beats": self._beats}  # fmt: skip
        write_atomically(self._path, json.dumps(lease).encode())

    def _renew(self) -> None:
        while not self._closed.wait(self._silent_s / _RENEWALS):
            holder = self._holder()
            if holder and holder.get("token") != self._token:
                end_at_once(
                    ExitCode.TAKEN_OVER,
                    f"{self._path.parent} was taken over by process {holder.get('pid')} on "
                    f"{holder.get('host')}, since this process gave no sign of life for "
                    f"{self._silent_s:g} s (faults.heartbeat_s); it stops here",
                )
            try:
                self._write()
            except OSError:
                continue  # A full disk is told of by the saves.
