"""The `mine` verb: hard negatives for the pairs of a run, with its trained model.

OUTPUT/SOURCE.jsonl          triplets, which `prepare` reads as a source with a negative_field
OUTPUT/SOURCE.dropped.jsonl  the passages that a rule dropped, with rank and scores
OUTPUT/mined.json            where they came from, and how many each rule dropped
"""

import dataclasses
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

from jina_jax.checkpoint.checkpoints import load_checkpoint
from jina_jax.config import RunConfig, SourceConfig
from jina_jax.devices.distributed import (
    check_agreement,
    is_first,
    shared_problems,
    wait_for_all,
)
from jina_jax.errors import UserError
from jina_jax.inference.embedder import Embedder
from jina_jax.mine.source import SourceMiner
from jina_jax.shards.manifest import (
    MANIFEST_FILE,
    Manifest,
    SourceSummary,
    load_manifest,
)
from jina_jax.shards.remote import open_source
from jina_jax.shards.verify import verify_shards
from jina_jax.system.atomic import write_json
from jina_jax.system.hashing import content_key, file_sha256
from jina_jax.system.terminal import say
from jina_jax.system.workspace import finished_report, places, workspace
from jina_jax.text.tokenizer import load_tokenizer

REPORT_FILE = "mined.json"


@dataclass(frozen=True)
class MinedSource:
    """What was mined for a source."""

    name: str
    licence: str
    trained_pairs: int
    """Training pairs of the run."""
    pairs: int
    """Those of them that the source still has."""
    queries: int
    """Different ones, at most `mine.max_queries`; each is searched for once."""
    passages: int
    """Different ones: what is searched."""
    candidates: int
    """Passages looked at: triplets + dropped."""
    triplets: int
    dropped: dict[str, int]
    """Rule → passages."""
    pairs_without_negative: int


@dataclass(frozen=True)
class MineReport:
    """What was mined, and with what."""

    identity: str
    """Equal for two runs of `mine` that give the same."""
    options: dict[str, Any]
    step: int
    """Of the checkpoint."""
    model: str
    """As `Embedder.identity` gives it."""
    manifest_sha256: str
    """Of the prepared data."""
    sources: tuple[MinedSource, ...]


def mine(config: RunConfig, *, progress: bool = True) -> MineReport:
    """Mines hard negatives for the training pairs of a run, with its newest checkpoint.

    The passages of a source are searched for its own queries, exactly. The folder appears when it
    is complete; a run that is killed goes on, when it is called again, after the texts that
    are embedded and the blocks of queries that are searched.

    Of several processes all call it, and see one run folder and one folder for what is mined; they
    share the texts and the search.

    Args:
      config: of a run that was prepared and trained.
      progress: show it on standard error.
    Returns: the report, which is also in `mined.json`.
    Raises: UserError when there is no checkpoint, no prepared data or no pair, or the folder holds
      something else.
    """
    out = config.mine_path
    with shared_problems():
        manifest = load_manifest(config.data_path)
        chosen = _chosen(config, manifest)
        if is_first():  # It alone reads them.
            verify_shards(manifest, config.data_path)
    trained = load_checkpoint(config.run_path)
    options = {k: v for k, v in vars(config.mine).items() if k != "output_dir"}
    embedder = Embedder(
        trained.params, trained.config, load_tokenizer(config.run_path / "tokenizer"),
        pooling=trained.pooling, prompts=trained.prompts, max_tokens=trained.max_tokens,
        batch_rows=config.evaluate.batch_rows,
    )  # fmt: skip
    report = MineReport(
        "", options, trained.step, embedder.identity(),
        file_sha256(config.data_path / MANIFEST_FILE), (),
    )  # fmt: skip
    report = dataclasses.replace(report, identity=content_key(dataclasses.asdict(report)))
    check_agreement(report.identity)
    before = None
    with shared_problems():
        before = finished_report(
            MineReport, out / REPORT_FILE, report.identity, nothing="nothing mined",
            other=lambda r: "was mined with other options, another checkpoint or other data "
            f"(step {r.step}, now {trained.step})", field="mine.output_dir",
        )  # fmt: skip
    check_agreement(str(before), f"another {out}", "all hosts must see one mine.output_dir")
    if before is not None:
        say(f"{out} already holds what this configuration mines", enabled=progress)
        return before
    with ExitStack() as stack:
        with shared_problems():
            if is_first():
                stack.enter_context(workspace(out, report.identity))
        space, mined = places(out), []
        for source, summary in chosen:
            miner = SourceMiner(source, space, embedder, config.mine, progress)
            values = miner.run(open_source(config.data_path, summary))
            mined.append(MinedSource(source.name, source.licence, summary.train, **values))
        report = dataclasses.replace(report, sources=tuple(mined))
        if is_first():
            write_json(space.result / REPORT_FILE, dataclasses.asdict(report))
    wait_for_all()
    say(f"mined {sum(s.triplets for s in mined):,} triplets in {out}", enabled=progress)
    return report


def _chosen(config: RunConfig, manifest: Manifest) -> list[tuple[SourceConfig, SourceSummary]]:
    """The sources to mine, as configured and as prepared."""
    summaries = {s.name: s for s in manifest.sources if s.record == "pair" and s.train}
    sources = {s.name: s for s in config.data.sources if s.name in summaries}
    wanted = config.mine.sources or tuple(sources)
    for name in wanted:
        if name not in sources:
            raise UserError(
                f"mine.sources: no source of pairs is named {name!r}; they are "
                f"{', '.join(sources) or '(none)'}"
            )
    if not wanted:
        raise UserError(f"{config.data_path} was prepared from no source of pairs in this config")
    return [(sources[name], summaries[name]) for name in wanted]
