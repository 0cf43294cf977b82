"""Plants noise in a clean source, and measures what filters find of it.

OUT/pairs.jsonl       training pairs, clean and planted ones, in a seeded order
OUT/planted.jsonl     {"row", "kind"} of every planted pair; rows are lines of pairs.jsonl, from 1
OUT/held_out.jsonl    clean pairs whose texts are in no training pair
OUT/injection.json    how many there are of each, and what they were made from
"""

import dataclasses
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow.dataset as ds

from jina_jax.config import InjectionConfig, SourceConfig
from jina_jax.errors import UserError
from jina_jax.prepare.ledger import ledger_batches
from jina_jax.shards.manifest import SourceSummary
from jina_jax.sources.read import matched_files, read_whole
from jina_jax.sources.records import read_file_records
from jina_jax.system.atomic import write_json, write_jsonl
from jina_jax.system.files import is_url, matched
from jina_jax.system.hashing import content_key, file_xxh3
from jina_jax.system.terminal import say
from jina_jax.system.workspace import discard_leftovers, workspace
from jina_jax.text.identity import text_hash
from jina_jax.types import BadRecord

MISMATCHED, FOREIGN = "mismatched", "foreign"
_VERSION = 1
_REPORT_FILE = "injection.json"


class Texts(NamedTuple):
    """A pair that its origin no longer matters to."""

    query: str
    positive: str


@dataclass(frozen=True)
class Injected:
    """A source with planted noise."""

    source: SourceConfig
    held_out: SourceConfig
    planted: dict[int, str]
    """Row of the source, from 1 → kind, of what was planted."""
    counts: dict[str, int]
    """Training pairs: `clean`, `mismatched` and `foreign`; and `held_out`."""


def inject(config: InjectionConfig, out: Path, *, progress: bool = True) -> Injected:
    """Makes a source in which known pairs are mismatched or in another language.

    The same configuration and files give the same bytes. The folder appears when it is complete;
    one that was made from the same is kept.

    Args:
      config: sources and shares.
      out: folder to make.
      progress: say on standard error what was made.
    Raises: UserError when a file cannot be read, there are too few pairs, or `out` holds something
      else.
    """
    identity = content_key(_VERSION, dataclasses.asdict(config), _inputs(config))
    if not out.exists() or not any(out.iterdir()):
        with workspace(out, identity) as space:
            counts = _write(config, space.result)
            write_json(space.result / _REPORT_FILE, {"identity": identity, "counts": counts})
    injected = _load(config, out, identity)
    discard_leftovers(out)
    shown = ", ".join(f"{count:,} {kind}" for kind, count in injected.counts.items())
    say(f"{config.clean.name} with planted noise: {shown.replace('_', ' ')}", enabled=progress)
    return injected


def _inputs(config: InjectionConfig) -> list[list[str]]:
    files = [*matched_files(config.clean), *_foreign_files(config)]
    return [[path, "" if is_url(path) else file_xxh3(path)] for path in files]


def _load(config: InjectionConfig, out: Path, identity: str) -> Injected:
    path = out / _REPORT_FILE
    if not path.is_file():
        raise UserError(f"{out} exists and holds no injected source: give another --workdir")
    report = json.loads(path.read_text(encoding="utf-8"))
    if report["identity"] != identity:
        raise UserError(
            f"{out} was made with another injection or from other files: give another --workdir, "
            f"or delete {out.parent}"
        )
    lines = (out / "planted.jsonl").read_text(encoding="utf-8").splitlines()
    planted = {row["row"]: row["kind"] for row in map(json.loads, lines)}
    sources = [
        SourceConfig(config.clean.name, paths=(str(out / file),), licence=config.clean.licence)
        for file in ("pairs.jsonl", "held_out.jsonl")
    ]
    return Injected(sources[0], sources[1], planted, report["counts"])


def _write(config: InjectionConfig, folder: Path) -> dict[str, int]:
    chance = np.random.default_rng(config.seed)
    seen: set[bytes] = set()
    given = (Texts(record.query, record.positive) for record in read_whole(config.clean))
    clean = _shuffled(list(_new(given, seen)), chance)
    foreign = _shuffled(list(_new(_foreign(config), seen)), chance)
    held_out, clean = clean[: config.held_out], clean[config.held_out :]
    total = _total(config, len(clean), len(foreign))
    mismatched = round(config.mismatched_share * total)
    other = round(config.foreign_share * total)
    rows = [(pair, MISMATCHED) for pair in _exchanged(clean[:mismatched])]
    rows += [(pair, FOREIGN) for pair in foreign[:other]]
    rows += [(pair, "clean") for pair in clean[mismatched : total - other]]
    rows = _shuffled(rows, chance)
    write_jsonl(folder / "pairs.jsonl", (pair._asdict() for pair, _ in rows))
    planted = ({"row": n, "kind": kind} for n, (_, kind) in enumerate(rows, 1) if kind != "clean")
    write_jsonl(folder / "planted.jsonl", planted)
    write_jsonl(folder / "held_out.jsonl", (pair._asdict() for pair in held_out))
    counts = Counter(kind for _, kind in rows)
    return {k: counts[k] for k in ("clean", MISMATCHED, FOREIGN)} | {"held_out": len(held_out)}


def _total(config: InjectionConfig, clean: int, foreign: int) -> int:
    """Training pairs that can be made of so many clean and foreign ones."""
    most = int(clean / (1 - config.foreign_share))
    if config.foreign_share:
        most = min(most, int(foreign / config.foreign_share))
    total = most if config.pairs is None else config.pairs
    if total > most or most < 10 or round(config.mismatched_share * total) == 1:
        raise UserError(
            f"injection.pairs={config.pairs}: {clean:,} clean pairs beside the {config.held_out:,} "
            f"held out and {foreign:,} texts in other languages make at most {most:,} training "
            f"pairs, and 10 are needed; lower injection.pairs, held_out or foreign_share"
        )
    return total


def _exchanged(pairs: list[Texts]) -> list[Texts]:
    """Each query with the passage of the next pair: none keeps its own, as no text occurs twice."""
    after = [*pairs, *pairs[:1]]
    return [Texts(a.query, b.positive) for a, b in pairwise(after)]


def _shuffled(items: list[Any], chance: np.random.Generator) -> list[Any]:
    return [items[i] for i in chance.permutation(len(items))]


def _new(pairs: Iterable[Texts], seen: set[bytes]) -> Iterator[Texts]:
    """Pairs of two texts, neither of which was in a pair before."""
    for pair in pairs:
        hashes = [text_hash(text) for text in pair]
        if all(text.strip() for text in pair) and len({*hashes} - seen) == 2:
            yield pair
            seen.update(hashes)


def _foreign_files(config: InjectionConfig) -> Iterator[str]:
    return matched(config.foreign_paths, "injection.foreign_paths")


def _foreign(config: InjectionConfig) -> Iterator[Texts]:
    for path in _foreign_files(config):
        for record in read_file_records(path, "jsonl"):
            if isinstance(record, BadRecord):
                raise UserError(f"{path}:{record.origin.row}: {record.detail}")
            yield from _halves(config, record.value, f"{path}:{record.origin.row}")


def _halves(config: InjectionConfig, value: Any, where: str) -> Iterator[Texts]:
    try:
        language, text = value[config.language_field], value[config.foreign_field]
        first, stop, rest = text.partition(". ")
    except (KeyError, TypeError, AttributeError):
        raise UserError(
            f"{where} has no texts in {config.language_field!r} and {config.foreign_field!r}: set "
            f"injection.language_field and injection.foreign_field"
        ) from None
    if stop and language not in config.kept_languages:
        yield Texts(first, rest)


SOUGHT = {"language": FOREIGN, "consistency": MISMATCHED}
"""Filter → the kind of noise that it is there to find."""


@dataclass(frozen=True)
class Detection:
    """What one filter dropped, by what it was."""

    clean: int
    mismatched: int
    foreign: int
    kind: str
    """What the filter is there to find: `foreign` or `mismatched`."""
    sought: int
    """Pairs of that kind among those that reached it."""
    precision: float | None
    """Share of planted pairs, of either kind, in what it dropped; None of nothing."""
    recall: float | None
    """Share of what is sought that it dropped; None where there was nothing to find."""


def detection(dropped: Mapping[str, int], kind: str, sought: int) -> Detection:
    """Precision and recall from counts.

    Args:
      dropped: `clean`, `mismatched` and `foreign` pairs that a filter dropped.
      kind: what it is there to find.
      sought: pairs of that kind that reached it.
    Example: 10 clean and 30 mismatched pairs dropped, of 40 mismatched, give precision 0.75 and
      recall 0.75.
    """
    planted = dropped[MISMATCHED] + dropped[FOREIGN]
    total = planted + dropped["clean"]
    return Detection(
        **{name: dropped[name] for name in ("clean", MISMATCHED, FOREIGN)},
        kind=kind,
        sought=sought,
        precision=planted / total if total else None,
        recall=dropped[kind] / sought if sought else None,
    )


def detections(
    data: Path, source: SourceSummary, planted: Mapping[int, str]
) -> dict[str, Detection]:
    """What each filter of a preparation found.

    Args:
      data: the prepared folder.
      source: that the noise was planted in.
      planted: row → kind.
    Returns: filter → what it found, in the order in which they were applied.
    Raises: UserError when there is no readable ledger.
    """
    dropped: dict[str, Counter[str]] = {}
    for batch in ledger_batches(data, ["row", "stage"], ds.field("source") == source.name):
        for row in batch.to_pylist():
            kind = planted.get(row["row"], "clean")
            dropped.setdefault(row["stage"], Counter())[kind] += 1
    filters = [s.stage for s in source.stages]
    left = Counter(planted.values())
    for stage in dropped.keys() - {*filters, "split"}:
        left -= dropped[stage]
    by_filter = {}
    for stage in filters:
        lost = dropped.get(stage, Counter())
        if stage in SOUGHT:
            by_filter[stage] = detection(lost, SOUGHT[stage], left[SOUGHT[stage]])
        left -= lost
    return by_filter
