"""One trainer a run folder, also where hosts share it.

The kernel's lock on a file tells of a trainer on this machine at once, however it ended. Another
machine's is told by the lease: a file, or an object of the store where the run folder is at a URL,
that its holder writes anew every few seconds.
"""

import json
import os
import socket
import threading
import time
import uuid
from contextlib import suppress
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from jina_jax.devices.distributed import is_first, share_problem
from jina_jax.errors import ExitCode, Unreachable, UserError
from jina_jax.system.mirror import TRAINER_LOCK
from jina_jax.system.objects import create_object
from jina_jax.system.processes import end_at_once
from jina_jax.system.store import Store
from jina_jax.system.terminal import say
from jina_jax.system.untrusted import parse_json

LEASE_FILE = "trainer.json"
"""In a run folder: who trains there."""
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
"""Tells machines apart that have one name."""
_RENEWALS = 6
"""In the time after which a silent holder counts as gone."""


class Lease:
    """The right to train in a run folder, of the first process for all."""

    def __init__(self, folder: Path, silent_s: float, url: str = ""):
        """Takes nothing yet.

        Args:
          folder: the run folder, or where this machine works for one at a URL.
          silent_s: seconds of silence after which a holder is gone.
          url: of the run folder, if it is at one.
        """
        self._folder, self._silent_s = folder, silent_s
        self._store = Store(url or str(folder))
        self._file = self._store.file(LEASE_FILE)
        self._lock = FileLock(folder / TRAINER_LOCK, blocking=False)
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
            with suppress(Unreachable, UserError):
                if self._holder().get("token") == self._token:
                    self._file.remove()
            self._lock.release()

    def _take(self) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)
        is_locked = True
        try:
            self._lock.acquire()
        except Timeout as error:
            raise self._refusal(self._holder()) from error
        except NotImplementedError:
            is_locked = False  # The file system knows no locks.
        holder = self._holder()
        if holder and not (is_locked and self._is_of_here(holder)):
            self._wait_for_silence(holder)
        if self._store.is_remote and not self._holder():
            # Of several that come at once one alone makes it.
            is_made = create_object(self._content(), self._file.path)
            # A try whose answer was lost may have made it.
            if not is_made and (taken := self._holder()).get("token") != self._token:
                raise self._refusal(taken)
            return
        self._file.put(self._content())
        if not is_locked or holder:
            # Another may have waited for the same silence.
            time.sleep(min(1.0, self._silent_s / _RENEWALS))
            if (taken := self._holder()).get("token") != self._token:
                raise self._refusal(taken)

    def _is_of_here(self, holder: dict[str, Any]) -> bool:
        """Whether a holder would have the lock, if it lived."""
        if self._store.is_remote:  # Another machine, or another cache, has a lock of its own.
            return bool(holder.get("place") == self._place())
        return bool(holder.get("host") == socket.gethostname())

    def _place(self) -> str:
        return f"{_BOOT_ID.read_text().strip()}:{self._folder.absolute()}"

    def _wait_for_silence(self, holder: dict[str, Any]) -> None:
        say(
            f"{holder.get('host')} began to train in {self._store.root}: waiting "
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
            f"{self._store.root} is being trained in by {who}; nothing was changed. Wait until "
            f"it ends, stop it, or train in another folder with --workdir"
        )

    def _holder(self) -> dict[str, Any]:
        """What the lease says; nothing where there is none that can be read."""
        try:
            values = parse_json(self._store.contents([LEASE_FILE]).get(LEASE_FILE, b""))
        except (OSError, ValueError):
            return {}
        return values if isinstance(values, dict) else {}

    def _content(self) -> bytes:
        self._beats += 1
        lease = {"host": socket.gethostname(), "pid": os.getpid(), "token": self._token,
                 "beats": self._beats}  # fmt: skip
        if self._store.is_remote:
            lease["place"] = self._place()
        return json.dumps(lease).encode()

    def _renew(self) -> None:
        while not self._closed.wait(self._silent_s / _RENEWALS):
            # A full disk, or a store that is away, is told of by the saves.
            with suppress(OSError, Unreachable, UserError):
                self._look()
                self._file.put(self._content())

    def _look(self) -> None:
        """Ends the process where another trainer holds the lease."""
        holder = self._holder()
        if holder and holder.get("token") != self._token:
            end_at_once(
                ExitCode.TAKEN_OVER,
                f"{self._store.root} was taken over by process {holder.get('pid')} on "
                f"{holder.get('host')}, since this process gave no sign of life for "
                f"{self._silent_s:g} s (faults.heartbeat_s); it stops here",
            )
