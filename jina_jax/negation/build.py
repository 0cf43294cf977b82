"""The `negation` verb: triplets of a sentence, its entailment and its negation.

OUTPUT/SOURCE.jsonl           triplets, which `prepare` reads as a source with a negative_field
OUTPUT/SOURCE.rejected.jsonl  records that gave none, with the reason
OUTPUT/negation.json          where they came from, and the counts
OUTPUT.answers/               what an endpoint answered, by request
"""

import dataclasses
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from jina_jax.config import DataConfig, NegationConfig, SourceConfig
from jina_jax.errors import UserError
from jina_jax.negation.endpoint import Endpoint
from jina_jax.negation.rules import flaw, negate, paraphrase
from jina_jax.sources.read import matched_files, read_source, with_fields
from jina_jax.system.atomic import join_files, write_atomically, write_json, write_jsonl
from jina_jax.system.files import file_state
from jina_jax.system.hashing import content_key
from jina_jax.system.terminal import say, track
from jina_jax.system.workspace import Workspace, finished_report, workspace
from jina_jax.text.identity import text_hash
from jina_jax.types import BadRecord

REPORT_FILE = "negation.json"
RULES_VERSION = 1
"""Raise it when rules, words or checks change what is made."""
_BLOCK_RECORDS = 1000


@dataclass(frozen=True)
class BuiltSource:
    """What became of a source: read = triplets + bad + rejected."""

    name: str
    licence: str
    read: int
    triplets: int
    bad: dict[str, int]
    """Reason → records that could not be read."""
    rejected: dict[str, int]
    """Reason → records without a triplet: `no_paraphrase`, `no_rule`, `malformed_answer`, or what
    `negation_check.flaw` gives."""


@dataclass(frozen=True)
class NegationReport:
    """What was built, and of what."""

    identity: str
    """Equal for two runs that give the same."""
    options: dict[str, Any]
    sources: tuple[BuiltSource, ...]


class _Made(NamedTuple):
    """A triplet, or why there is none."""

    query: str
    positive: str
    negative: str
    reason: str = ""


def build_negations(
    config: NegationConfig, data: DataConfig, out: Path, *, progress: bool = True
) -> NegationReport:
    """Builds triplets of the configured sources.

    The folder appears when it is complete; a run that is killed goes on, when it is called again,
    from the blocks it had finished, and an endpoint is never asked twice for the same.

    Args:
      config: who writes negations, and what they must be.
      data: its sources.
      out: folder to make.
      progress: show it on standard error.
    Returns: the report, which is also in `negation.json`.
    Raises: UserError when a source cannot be read, an endpoint gives no answer, or the folder
      holds something else.
    """
    sources = [with_fields(source) for source in _chosen(config, data)]
    out = out.absolute()
    options = _options(config)
    identity = content_key(RULES_VERSION, options, [_source_key(s) for s in sources])
    before = finished_report(
        NegationReport, out / REPORT_FILE, identity, nothing="no negations",
        other=lambda _: "was built with other options or input", field="negation.output_dir",
    )  # fmt: skip
    if before is not None:
        say(f"{out} already holds what this configuration builds", enabled=progress)
        return before
    with workspace(out, identity) as space:
        if config.method == "endpoint":
            answers = out.with_name(f"{out.name}.answers")
            with Endpoint(config.endpoint, answers) as endpoint:
                texts = (text for s in sources for text in _texts_to_ask(s))
                say(f"{config.endpoint.model}: {endpoint.estimate(texts)}")
                built = [_build(s, config, space, endpoint, progress) for s in sources]
        else:
            built = [_build(s, config, space, None, progress) for s in sources]
        report = NegationReport(identity, options, tuple(built))
        write_json(space.result / REPORT_FILE, dataclasses.asdict(report))
    return report


def _chosen(config: NegationConfig, data: DataConfig) -> list[SourceConfig]:
    sources = {source.name: source for source in data.sources}
    if not sources:
        raise UserError("data.sources is empty: name at least one source of sentences")
    for name in config.sources:
        if name not in sources:
            raise UserError(
                f"negation.sources: no source is named {name!r}; they are {', '.join(sources)}"
            )
    chosen = [sources[name] for name in config.sources or sources]
    for source in chosen:
        if source.score_field:
            raise UserError(
                f"source {source.name!r} is of scored pairs, whose texts need not follow from each "
                f"other: name the sources to negate in negation.sources, without it"
            )
    return chosen


def _options(config: NegationConfig) -> dict[str, Any]:
    """What decides the triplets."""
    endpoint = config.endpoint
    return {
        "method": config.method,
        "check": dataclasses.asdict(config.check),
        "endpoint": None if config.method == "rules" else {
            name: getattr(endpoint, name)
            for name in ("base_url", "model", "prompt", "temperature", "max_answer_tokens")
        },
    }  # fmt: skip


def _source_key(source: SourceConfig) -> list[Any]:
    values = dataclasses.asdict(dataclasses.replace(source, weight=1.0))
    for name in ("label_field", "score_field", "in_batch"):
        del values[name]  # Negations do not depend on them.
    return [
        values,
        [[path, dataclasses.asdict(file_state(path))] for path in matched_files(source)],
    ]


def _texts_to_ask(source: SourceConfig) -> Iterator[str]:
    """The positives of the pairs of a source; of triplets nothing is asked."""
    for record in () if source.negative_field else read_source(source):
        if not isinstance(record, BadRecord):
            yield record.positive


def _build(
    source: SourceConfig, config: NegationConfig, space: Workspace, endpoint: Endpoint | None,
    progress: bool,
) -> BuiltSource:  # fmt: skip
    records = read_source(source)
    totals: dict[str, Counter[str]] = {"bad": Counter(), "rejected": Counter()}
    read = 0
    parts = []
    blocks = iter(lambda: list(islice(records, _BLOCK_RECORDS)), [])
    for block, part in enumerate(track(blocks, source.name, unit="blocks", enabled=progress)):
        stem = f"{source.name}.{block:06d}"
        marker = space.markers / stem
        if not marker.exists():
            bad = [record for record in part if isinstance(record, BadRecord)]
            good = [record.texts for record in part if not isinstance(record, BadRecord)]
            made = [
                m if m.reason else m._replace(reason=flaw(*m[:3], config.check))
                for m in _make(good, endpoint)
            ]
            for ending, is_rejected in (("jsonl", False), ("rejected.jsonl", True)):
                chosen = (m._asdict().items() for m in made if bool(m.reason) == is_rejected)
                rows = ({name: value for name, value in row if value} for row in chosen)
                write_jsonl(space.work / f"{stem}.{ending}", rows)
            counts = {
                "bad": Counter(record.reason for record in bad),
                "rejected": Counter(m.reason for m in made if m.reason),
            }
            write_atomically(marker, json.dumps(counts).encode())
        for name, found in json.loads(marker.read_text()).items():
            totals[name].update(found)
        read += len(part)
        parts.append(stem)
    for ending in ("jsonl", "rejected.jsonl"):
        join_files(
            (space.work / f"{stem}.{ending}" for stem in parts),
            space.result / f"{source.name}.{ending}",
        )
    triplets = read - sum(count.total() for count in totals.values())
    bad_counts, rejected = (dict(sorted(totals[name].items())) for name in ("bad", "rejected"))
    return BuiltSource(source.name, source.licence, read, triplets, bad_counts, rejected)


def _make(records: Sequence[tuple[str, ...]], endpoint: Endpoint | None) -> Iterator[_Made]:
    """Triplets as they are; of pairs, the positive and its negation."""
    if records and len(records[0]) == 3:
        yield from (_Made(*record) for record in records)
        return
    if endpoint is None:
        yield from (_by_rules(query, positive) for query, positive in records)
        return
    answers = endpoint.answers([positive for _, positive in records])
    for (query, positive), answer in zip(records, answers, strict=True):
        if text_hash(query) == text_hash(positive):
            positive = answer.entailment
        is_whole = bool(positive and answer.negative)
        yield _Made(query, positive, answer.negative, "" if is_whole else "malformed_answer")


def _by_rules(query: str, positive: str) -> _Made:
    if text_hash(query) == text_hash(positive):
        changed = paraphrase(query)
        if changed is None:
            return _Made(query, positive, "", "no_paraphrase")
        # A contraction that the paraphrase brought in is not negated: then the sentence itself is.
        negative = negate(changed) or negate(query)
        positive = changed
    else:
        negative = negate(positive)
    return _Made(query, positive, negative or "", "" if negative else "no_rule")
