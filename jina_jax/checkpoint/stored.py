"""Steps of a run whose folder is at a URL, in an object store where nothing can be renamed.

Orbax writes to no s3://, and several hosts with disks of their own save no common step with it. So
each process writes its own part of the arrays to one file for each of `params` and `training`, on
its disk first, and puts them there:

    STEP/params.PROCESS.TOKEN      bytes of the slices that the process has
    STEP/seal.json                 last: metadata, arrays, and of each file its SHA-256 and slices

A step with a seal is complete. No two writers use the same token, so that what another has begun
is never mixed in. Any number of processes reads it again.
"""

import hashlib
import itertools
import json
import shutil
import uuid
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jina_jax.devices.distributed import gather_at_first
from jina_jax.errors import UserError
from jina_jax.system.atomic import atomic_file, sync, write_json
from jina_jax.system.files import again, store
from jina_jax.system.hashing import SEAL_FILE, file_sha256
from jina_jax.system.objects import each, list_objects, put_object, read_object, remove_object
from jina_jax.system.untrusted import inner_path, parse_json

_ASIDE_FILE = "seal.damaged.json"
_saves = itertools.count()

Slices = list[tuple[str, list[int], list[int], int]]
"""Name of the array, first index and end along each axis, and where its bytes begin in the file."""
Snapshot = dict[str, list[tuple[str, list[int], np.ndarray]]]
"""Part → name, first index and values of each slice that this process has."""


def snapshot(parts: Mapping[str, Mapping[str, Any]]) -> Snapshot:
    """Copies what this process is to write, so that the devices may go on.

    Args:
      parts: arrays by part and name; of what several devices hold one copies.
    """
    taken: dict[str, list[tuple[str, list[int], Any]]] = {
        part: list(_own_slices(arrays)) for part, arrays in parts.items()
    }
    for slices in taken.values():
        for _, _, values in slices:
            if isinstance(values, jax.Array):
                values.copy_to_host_async()
    return {
        part: [(name, begin, np.array(values)) for name, begin, values in slices]
        for part, slices in taken.items()
    }


def _own_slices(arrays: Mapping[str, Any]) -> Iterator[tuple[str, list[int], Any]]:
    for name, array in arrays.items():
        if isinstance(array, jax.Array):
            for shard in array.addressable_shards:
                if shard.replica_id == 0:
                    yield name, [s.start or 0 for s in shard.index], shard.data
        elif jax.process_index() == 0:
            yield name, [0] * np.ndim(array), array


class StoredSteps:
    """The steps below a URL, and what this machine has of them in a folder."""

    def __init__(self, url: str, folder: Path):
        """Args: where they lie, and the folder here."""
        self.url, self.folder = url, folder
        self._seals: dict[int, dict[str, Any]] = {}
        self._checked: set[tuple[int, str]] = set()
        """Files of steps that are here and as they were sealed."""

    def steps(self) -> list[int]:
        """The complete ones, the newest last."""
        return sorted(step for step, files in self._files().items() if SEAL_FILE in files)

    def write(self, saving: Path, taken: Snapshot) -> dict[str, Any]:
        """Writes this process's files into a folder here.

        Returns: what a seal says of them, by name.
        """
        saving.mkdir(parents=True, exist_ok=True)
        rank, token = jax.process_index(), uuid.uuid4().hex[:8]
        for old in saving.glob(f"*.{rank}.*"):
            old.unlink()
        files = {}
        for part, slices in taken.items():
            path = saving / f"{part}.{rank}.{token}"
            said: Slices = []
            digest, offset = hashlib.sha256(), 0
            with path.open("wb") as file:
                for name, begin, values in slices:
                    content = values.tobytes()
                    file.write(content)
                    digest.update(content)
                    end = [b + n for b, n in zip(begin, values.shape, strict=True)]
                    said.append((name, begin, end, offset))
                    offset += len(content)
            sync(path)
            files[path.name] = {"sha256": digest.hexdigest(), "size_bytes": offset, "slices": said}
        return files

    def keep_until_sent(self, saving: Path, said: dict[str, Any]) -> None:
        """Notes beside this process's files what is to be said of them, so that another start may
        send them; those of an earlier step go.
        """
        rank = jax.process_index()
        write_json(saving / f"index.{rank}.json", said | {"processes": jax.process_count()})
        for other in self.folder.glob(f"saving-*/*.{rank}.*"):
            if other.parent != saving:
                other.unlink()
                with suppress(OSError):  # Another process has files there.
                    other.parent.rmdir()

    def kept(self) -> int:
        """The newest step that this process has written whole, sent or not; -1 for none."""
        return max((int(path.parent.name.partition("-")[2]) for path in self._kept()), default=-1)

    def _kept(self) -> Iterator[Path]:
        for path in self.folder.glob(f"saving-*/index.{jax.process_index()}.json"):
            said = json.loads(path.read_bytes())
            is_whole = all(_is_whole(path.parent / n, f) for n, f in said["files"].items())
            if is_whole and said["processes"] == jax.process_count():
                yield path

    def send(
        self, saving: Path, number: int, said: dict[str, Any], before: Callable[[], None]
    ) -> None:
        """Puts this process's files; the first seals the step when all have done so.

        Args:
          saving: the folder here that has them.
          number: of the step.
          said: `metadata`, `arrays` and this process's `files`.
          before: called right before the seal.
        Raises: OSError, UserError or RunFailed.
        """
        problem: Exception | None = None
        try:
            works = {n: partial(put_object, saving / n, self._at(number, n)) for n in said["files"]}
            each(works, "save", shows=False)
        except Exception as error:
            problem = error
        words = "" if problem else json.dumps(said["files"])
        of_all = gather_at_first(f"checkpoint/{next(_saves)}", words)
        if problem:
            raise problem
        if jax.process_index():
            return
        if missing := [str(i) for i, words in enumerate(of_all) if not words]:
            raise OSError(f"process {', '.join(missing)} could not put its part there")
        files = {name: file for words in of_all for name, file in json.loads(words).items()}
        sealed = {"metadata": said["metadata"], "arrays": said["arrays"], "files": files}
        _check_covered(sealed)
        before()
        put_object(json.dumps(sealed).encode(), self._at(number, SEAL_FILE))
        if jax.process_count() == 1:
            shutil.rmtree(self.folder / str(number), ignore_errors=True)
            saving.rename(self.folder / str(number))

    def tell_failure(self) -> None:
        """Tells the first process that this one has nothing to be sealed."""
        gather_at_first(f"checkpoint/{next(_saves)}", "")

    def trim(self, keep: int) -> None:
        """Removes all but the newest steps, there and here, and what was never sealed before the
        newest.
        """
        files = self._files()
        sealed = sorted(step for step, names in files.items() if SEAL_FILE in names)
        for step, names in files.items():
            if step in sealed[-keep:]:
                named = set(self.seal(step)["files"]) | {SEAL_FILE}
                gone = [] if _ASIDE_FILE in names else [n for n in names if n not in named]
            elif step in sealed or (sealed and step < sealed[-1] and _ASIDE_FILE not in names):
                gone = sorted(names, key=lambda name: name != SEAL_FILE)
            else:
                continue
            for name in gone:
                remove_object(self._at(step, name))
        for path in self.folder.iterdir():
            if path.name.isdecimal() and int(path.name) not in sealed[-keep:]:
                shutil.rmtree(path, ignore_errors=True)

    def set_aside(self, step: int) -> str:
        """Makes a damaged step one that is not complete; its files stay.

        Returns: where its seal is now.
        """
        aside = self._at(step, _ASIDE_FILE)
        put_object(read_object(self._at(step, SEAL_FILE)) or b"", aside)
        remove_object(self._at(step, SEAL_FILE))
        shutil.rmtree(self.folder / str(step), ignore_errors=True)
        return aside

    def forget(self, step: int) -> None:
        """A damaged step may be written again: what is known of it holds no longer."""
        self._seals.pop(step, None)

    def seal(self, step: int) -> dict[str, Any]:
        """What the seal of a step says; empty where it cannot be read."""
        if step in self._seals:
            return self._seals[step]
        content = read_object(self._at(step, SEAL_FILE))
        try:
            found = parse_json(content or b"")
        except ValueError:
            return {}
        if not (isinstance(found, dict) and {"metadata", "arrays", "files"} <= found.keys()):
            return {}
        self._seals[step] = found
        return found

    def fetch(self, step: int, parts: Sequence[str], share: tuple[int, int] = (0, 1)) -> str:
        """Brings some parts of a step here, every byte checked.

        Args:
          step: the step.
          parts: of it.
          share: (i, n) brings only what process i, i + n, ... of those that saved it wrote.
        Returns: what is wrong with it there; empty where nothing is.
        """
        sealed = self.seal(step)
        if not sealed:
            return f"{SEAL_FILE} cannot be read"
        first, stride = share
        return self._fetch(step, [
            name for name in sealed["files"]
            if name.partition(".")[0] in parts and _writer(name) % stride == first
        ])  # fmt: skip

    def fetch_for(self, step: int, wanted: Mapping[str, Mapping[str, Any]]) -> str:
        """As `fetch`, the files with a value that a device of this process wants.

        Args:
          step: a good one.
          wanted: by part, as for `load`.
        """
        files = self.seal(step)["files"]
        return self._fetch(step, [
            name for name, said in files.items()
            if (arrays := wanted.get(name.partition(".")[0])) and _has_of(said["slices"], arrays)
        ])  # fmt: skip

    def _fetch(self, step: int, names: Sequence[str]) -> str:
        files, problems = self.seal(step)["files"], dict[str, str]()

        def get(name: str) -> None:
            path = inner_path(self.folder / str(step), name)
            if (step, name) in self._checked and path.exists():
                return
            path.parent.mkdir(parents=True, exist_ok=True)
            for is_last in (False, True):
                if _is_whole(path, files[name]):
                    self._checked.add((step, name))
                    return
                try:
                    again(self._at(step, name), partial(self._get, self._at(step, name), path))
                except UserError as error:
                    problems[name] = str(error)
                    return
                if is_last and not _is_whole(path, files[name]):
                    path.unlink(missing_ok=True)
                    problems[name] = f"{name} has other bytes than were sealed"

        each({name: partial(get, name) for name in names}, f"fetch step {step}")
        return next(iter(problems.values()), "")

    def load(self, step: int, part: str, wanted: Mapping[str, Any]) -> dict[str, Any]:
        """Arrays of a step, each where it is wanted.

        Args:
          step: one of which `fetch_for` has brought what is wanted.
          part: of it.
          wanted: name → `jax.ShapeDtypeStruct` with a sharding; of the shapes that are held.
        """
        where: dict[str, list[tuple[Path, list[int], list[int], int]]] = defaultdict(list)
        for file, said in self.seal(step)["files"].items():
            if file.partition(".")[0] == part:
                for name, begin, end, offset in said["slices"]:
                    path = inner_path(self.folder / str(step), file)
                    where[name].append((path, begin, end, offset))
        return {
            name: jax.make_array_from_callback(
                like.shape, like.sharding, partial(_read, where[name], like.shape, like.dtype)
            )
            for name, like in wanted.items()
        }

    def _files(self) -> dict[int, set[str]]:
        found: dict[int, set[str]] = defaultdict(set)
        for name in list_objects(self.url):
            step, _, file = name.partition("/")
            if step.isdecimal() and file:
                found[int(step)].add(file)
        return found

    def _at(self, step: int, name: str) -> str:
        return f"{self.url}/{step}/{name}"

    @staticmethod
    def _get(url: str, path: Path) -> None:
        with atomic_file(path) as part, store(url) as (system, name):
            system.invalidate_cache()
            system.get_file(name, str(part))


def _writer(name: str) -> int:
    """The process that wrote a file; 0 where its name does not tell."""
    rank = name.split(".")[1:2]
    return int(rank[0]) if rank and rank[0].isdecimal() else 0


Box = tuple[tuple[int, ...], tuple[int, ...]]
"""First index and end along each axis."""


def _has_of(slices: Slices, wanted: Mapping[str, Any]) -> bool:
    """Whether any of a file's slices meets what a device of this process wants."""
    boxes = {
        name: {
            _box(index, like.shape)
            for index in like.sharding.addressable_devices_indices_map(like.shape).values()
        }
        for name, like in wanted.items()
    }
    return any(
        all(a < b for a, b in zip(*_common(box, begin, end), strict=True))
        for name, begin, end, _ in slices
        for box in boxes.get(name, ())
    )


def _box(index: tuple[slice, ...], shape: tuple[int, ...]) -> Box:
    ends = (n if s.stop is None else s.stop for s, n in zip(index, shape, strict=True))
    return tuple(s.start or 0 for s in index), tuple(ends)


def _common(box: Box, first: Sequence[int], last: Sequence[int]) -> Box:
    """What a box has in common with a slice."""
    return tuple(map(max, box[0], first)), tuple(map(min, box[1], last))


def _is_whole(path: Path, said: dict[str, Any]) -> bool:
    try:
        has_size = path.stat().st_size == said["size_bytes"]
    except FileNotFoundError:
        return False
    return has_size and file_sha256(path) == said["sha256"]


def _check_covered(sealed: dict[str, Any]) -> None:
    """What can't be found again is no checkpoint."""
    held: dict[tuple[str, str], int] = defaultdict(int)
    for file, said in sealed["files"].items():
        for name, begin, end, _ in said["slices"]:
            size = [e - b for b, e in zip(begin, end, strict=True)]
            held[file.partition(".")[0], name] += int(np.prod(size, dtype=np.int64))
    for part, arrays in sealed["arrays"].items():
        for name, array in arrays.items():
            wanted = int(np.prod(array["shape"], dtype=np.int64))
            if held[part, name] != wanted:
                raise OSError(f"{part}/{name}: {held[part, name]} of {wanted} values were written")


def _read(
    slices: Sequence[tuple[Path, list[int], list[int], int]], shape: tuple[int, ...], dtype: Any,
    index: tuple[slice, ...],
) -> np.ndarray:  # fmt: skip
    """The values of one device, from all slices that meet them."""
    box = begin, end = _box(index, shape)
    found = np.empty([e - b for b, e in zip(begin, end, strict=True)], dtype)
    for path, first, last, offset in slices:
        low, high = _common(box, first, last)
        if all(a < b for a, b in zip(low, high, strict=True)):
            size = [b - a for a, b in zip(first, last, strict=True)]
            held = np.memmap(path, np.uint8, "r", offset, (int(np.prod(size)) * found.itemsize,))
            theirs = tuple(slice(a - f, b - f) for a, b, f in zip(low, high, first, strict=True))
            ours = tuple(slice(a - f, b - f) for a, b, f in zip(low, high, begin, strict=True))
            found[ours] = held.view(dtype).reshape(size)[theirs]
    return found
