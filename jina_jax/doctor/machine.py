"""The machine: Python, packages, memory, disk, folders, clock."""

import os
import platform
import re
import resource
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import metadata, resources
from pathlib import Path
from typing import Literal

from jina_jax.errors import UserError
from jina_jax.system.environment import package_version

Verdict = Literal["ok", "warning", "failed"]


@dataclass(frozen=True)
class Check:
    """One line of the report."""

    subject: str
    verdict: Verdict
    detail: str
    """What was found."""
    remedy: str = ""
    """What helps; empty where nothing has to."""


Checks = Iterator[Check]


def judged(
    subject: str, good: bool, detail: str, remedy: str, otherwise: Verdict = "warning"
) -> Check:
    """A check that is well, or else wants a remedy."""
    return Check(subject, "ok", detail) if good else Check(subject, otherwise, detail, remedy)


def guarded(subject: str, checks: Callable[[], Checks]) -> Checks:
    """The checks of a function; what it cannot read becomes a failed one of its subject.

    Args:
      subject: of the failed check.
      checks: may raise UserError, whose message says what helps.
    """
    try:
        yield from checks()
    except UserError as error:
        what, _, remedy = str(error).partition("; ")
        yield Check(subject, "failed", what, remedy or "restore it, or make it again")


_PYTHONS = ((3, 11), (3, 13))
_LEAST_MEMORY_GIB = 4
_LEAST_DISK_GIB = 2
_LEAST_SHARED_GIB = 1
_LEAST_FILES = 1024
_MOST_SKEW_S = 5
_GIB = 2**30


def machine_checks() -> Checks:
    """Everything that does not depend on a run."""
    yield _python()
    yield from _packages()
    yield _memory()
    yield _shared_memory()
    yield _open_files()
    yield _clock()
    cache = os.environ.get("HF_HOME") or Path.home() / ".cache"
    for subject, folder in (("temporary folder", tempfile.gettempdir()), ("cache folder", cache)):
        yield from folder_checks(subject, Path(folder))


def _python() -> Check:
    version, (low, high) = sys.version_info[:2], _PYTHONS
    found = f"{platform.python_version()} on {platform.system()} {platform.machine()}"
    remedy = f"use Python {low[0]}.{low[1]} to {high[0]}.{high[1]}"
    return judged("python", low <= version <= high, found, remedy, "failed")


def tested_versions() -> dict[str, str]:
    """Package → the version that the tests were run with."""
    text = (resources.files("jina_jax") / "constraints.txt").read_text(encoding="utf-8")
    found = re.findall(r"^([\w.-]+)==([^\s;]+)", text, re.MULTILINE)
    return {_canonical(name): version for name, version in found}


def _canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def _packages() -> Checks:
    """The packages that jina-jax asks for, beside what it was tested with."""
    wanted = [
        re.split(r"[\s;<>=!~\[(]", line)[0]
        for line in metadata.requires("jina-jax") or ()
        if "extra ==" not in line
    ]
    tested, missing, others = tested_versions(), [], []
    for name in wanted:
        if not (version := package_version(name)):
            missing.append(name)
            continue
        known = tested.get(_canonical(name), version)
        # Of these packages a third number changes nothing that is used here.
        if version.split("+")[0].split(".")[:2] != known.split(".")[:2]:
            others.append(f"{name} {version} (tested: {known})")
    if missing:
        remedy = f"pip install {' '.join(missing)}"
        yield Check("packages", "failed", f"missing: {', '.join(missing)}", remedy)
    if others:
        path = resources.files("jina_jax") / "constraints.txt"
        yield Check("packages", "warning", ", ".join(others), f"pip install -c {path} jina-jax")
    if not missing and not others:
        yield Check("packages", "ok", f"{len(wanted)}, of the versions that were tested")


def _memory() -> Check:
    total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    free = total
    meminfo = Path("/proc/meminfo")
    if meminfo.is_file() and (found := re.search(r"MemAvailable:\s+(\d+)", meminfo.read_text())):
        free = int(found[1]) * 1024
    detail = f"{free / _GIB:.1f} GiB free of {total / _GIB:.1f}, {os.cpu_count()} CPU cores"
    remedy = "end other programs, or lower feed.prefetch_batches"
    return judged("memory", free >= _LEAST_MEMORY_GIB * _GIB, detail, remedy)


def _shared_memory() -> Check:
    """Workers of the feed hand over their batches through it."""
    shared = Path("/dev/shm")  # noqa: S108  It is only looked at.
    if not shared.is_dir():
        return Check("shared memory", "ok", "none; feed.workers=0 needs none")
    free = shutil.disk_usage(shared).free
    detail = f"{free / _GIB:.1f} GiB free in {shared}"
    remedy = "docker run --shm-size 8g, a larger tmpfs there, or feed.workers=0"
    return judged("shared memory", free >= _LEAST_SHARED_GIB * _GIB, detail, remedy)


def _open_files() -> Check:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    detail = f"{soft:,} at once for a process"
    enough = soft == resource.RLIM_INFINITY or soft >= _LEAST_FILES
    remedy = f"ulimit -n {min(hard, 65536)}: each shard is one"
    return judged("open files", enough, detail, remedy)


def _clock() -> Check:
    """Caches and changed files are told by their times."""
    now = time.time()
    detail = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(now))
    installed = max(path.stat().st_mtime for path in Path(__file__).parent.glob("*.py"))
    if now + _MOST_SKEW_S >= installed:
        return Check("clock", "ok", detail)
    return Check("clock", "warning", f"{detail}, before this was installed", "set it (NTP)")


def folder_checks(subject: str, folder: Path, needed_bytes: int = 0) -> Checks:
    """Whether a folder, or the one it will be made in, can be written to and has room.

    Args:
      subject: what the folder is for.
      folder: need not exist.
      needed_bytes: that will be written to it.
    """
    there = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    if not there.is_dir():
        yield Check(subject, "failed", f"{there} is a file", "remove it or name another folder")
        return
    try:
        with tempfile.NamedTemporaryFile(dir=there, prefix=".doctor-") as file:
            file.write(b"x")
            file.flush()
            skew_s = os.fstat(file.fileno()).st_mtime - time.time()
        usage = shutil.disk_usage(there)
    except OSError as error:
        remedy = "give this user the right to write there, or name another folder"
        yield Check(subject, "failed", f"{there}: {error.strerror or error}", remedy)
        return
    detail = f"{there}: {usage.free / _GIB:.1f} GiB free of {usage.total / _GIB:.1f}"
    if needed_bytes > usage.free:
        needed = f"{detail}; {needed_bytes / _GIB:.1f} are needed"
        yield Check(subject, "failed", needed, "free space, or name a folder on another disk")
    elif usage.free < _LEAST_DISK_GIB * _GIB:
        yield Check(subject, "warning", detail, "free space, or name a folder on another disk")
    else:
        yield Check(subject, "ok", detail)
    if abs(skew_s) > _MOST_SKEW_S:
        found = f"the clock of {there} differs from this machine's by {skew_s:+.0f} s"
        remedy = "synchronise both (NTP): changed files are told by their times"
        yield Check("clock", "warning", found, remedy)
