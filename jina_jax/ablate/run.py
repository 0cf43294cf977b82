"""The `ablate` verb: every arm is prepared, trained with every seed, and measured alike.

WORKDIR/source/            what an injection makes
WORKDIR/data/ARM/          prepared data; arms that are prepared alike share the first one's
WORKDIR/ARM/seed-N/        an ordinary run, and results.json once it is measured
WORKDIR/references.json    BM25 and the untrained model, on the same held-out pairs
WORKDIR/ablation.json      all figures
WORKDIR/ablation.png, .svg
"""

import dataclasses
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from jina_jax.ablate.noise import Injected, detections, inject
from jina_jax.ablate.report import ABLATION_FILE, AblationReport, ArmReport, plot_ablation
from jina_jax.checkpoint.checkpoints import is_run
from jina_jax.config import Ablation, RunConfig, SourceConfig
from jina_jax.config.ablate import ablation_problems, arm_config
from jina_jax.config.files import difference, unchangeable_fields
from jina_jax.config.validation import validate
from jina_jax.devices.mesh import make_mesh
from jina_jax.errors import UserError
from jina_jax.evaluate.negation import held_out_negation, score_negation
from jina_jax.evaluate.results import score_all
from jina_jax.evaluate.retrieval import (
    RetrievalTask,
    evaluate_retrieval,
    held_out_retrieval,
    task_of_pairs,
)
from jina_jax.inference.embedder import Embedder
from jina_jax.inference.initial import initial_params
from jina_jax.prepare.run import prepare
from jina_jax.shards.manifest import MANIFEST_FILE, Manifest, prepared_config
from jina_jax.shards.remote import open_source
from jina_jax.sources.read import read_whole
from jina_jax.system.atomic import write_json
from jina_jax.system.hashing import content_key, file_sha256
from jina_jax.system.terminal import say
from jina_jax.system.workspace import check_writable
from jina_jax.text.identity import text_hash
from jina_jax.text.tokenizer import load_tokenizer
from jina_jax.train.loop import train


def source_task(source: SourceConfig) -> RetrievalTask:
    """The pairs of a source as a retrieval task, equal texts as one; negatives are ignored.

    Raises: UserError naming the first record that cannot be read: none is skipped.
    """
    pairs = (
        (text_hash(record.query), record.query, text_hash(record.positive), record.positive)
        for record in read_whole(source)
    )
    return task_of_pairs(source.name, pairs)


def tasks_key(tasks: Sequence[RetrievalTask]) -> str:
    """Equal for equal tasks."""
    corpora = [dict(zip(t.corpus.ids, t.corpus.texts(), strict=True)) for t in tasks]
    return content_key(
        [[t.name, t.queries, c, t.relevant] for t, c in zip(tasks, corpora, strict=True)]
    )


def check_unseen(tasks: Sequence[RetrievalTask], manifest: Manifest, data: Path, arm: str) -> None:
    """Refuses an arm whose training records hold a held-out text.

    Args:
      tasks: the held-out pairs.
      manifest: of the arm's prepared folder.
      data: that folder.
      arm: its name.
    Raises: UserError saying how many there are, and the way out.
    """
    texts = {name for task in tasks for name in (*task.queries, *task.corpus.ids)}
    held = np.frombuffer(b"".join(bytes.fromhex(name)[:8] for name in texts), "<u8")
    shared = 0
    for source in manifest.sources:
        for records in open_source(data, source).batches():
            # Half of a hash tells texts apart but for 2⁻⁶⁴ a comparison.
            shared += int(np.isin(records.hashes_NSx2[..., 0], held).any(axis=1).sum())
    if shared:
        raise UserError(
            f"arm {arm!r} would train on {shared:,} records that hold a held-out text: take "
            f"held-out pairs of another source, or name them in data.decontamination.sets"
        )


def measure(
    config: RunConfig, embedder: Embedder, tasks: Sequence[RetrievalTask], manifest: Manifest
) -> dict[str, float]:
    """A model's means over the tasks.

    Args:
      config: says at how many passages nDCG and recall are cut off, and where the data lie.
      embedder: the model.
      tasks: at least one.
      manifest: of the prepared data; where it holds out triplets, negation is measured too.
    Returns: measure → value in 0..1.
    """
    systems, folder = {"model": embedder}, config.data_path
    by_kind = (
        evaluate_retrieval(tasks, systems, config.evaluate.top_k, with_bm25=False),
        score_all(held_out_negation(manifest, folder), systems, score_negation),
    )
    means: dict[str, float] = {}
    for results in by_kind:
        means |= results["average"]["model"] if results else {}
    return means


@dataclass(frozen=True)
class _Prepared:
    """An arm that can be trained."""

    name: str
    changes: dict[str, Any]
    config: RunConfig
    """Of no seed yet."""
    manifest: Manifest
    tasks: Sequence[RetrievalTask]


def ablate(ablation: Ablation, *, progress: bool = True) -> AblationReport:
    """Runs what is not done yet of an ablation, and compares its arms.

    A run that was measured is not run again; one that was stopped goes on from its newest
    checkpoint, as `train` does.

    Args:
      ablation: arms and seeds.
      progress: show it on standard error.
    Returns: the report, which is also in `ablation.json`.
    Raises:
      UserError: the ablation, its data or an earlier run cannot be used.
      Interrupted: SIGINT or SIGTERM came; everything is saved.
    """
    check(ablation)
    root = ablation.base.run_path
    check_writable(root)
    injected = None
    if ablation.injection is not None:
        injected = inject(ablation.injection, root / "source", progress=progress)
    arms = _prepared(ablation, injected, progress)
    seeds = [ablation.base.train.seed + i for i in range(ablation.seeds)]
    references = _references(arms[0], seeds[0], root)
    runs: dict[str, list[dict[str, float]]] = {arm.name: [] for arm in arms}
    for number, (seed, arm) in enumerate((seed, arm) for seed in seeds for arm in arms):
        where = f"run {number + 1} of {len(seeds) * len(arms)}: {arm.name}, seed {seed}"
        runs[arm.name].append(_run(arm, seed, root, where, progress))
    report = AblationReport(
        name=ablation.base.name,
        seeds=tuple(seeds),
        injected=injected.counts if injected else {},
        references=references,
        arms=tuple(_arm_report(arm, runs[arm.name], injected) for arm in arms),
    )
    write_json(root / ABLATION_FILE, dataclasses.asdict(report))
    for ending in ("png", "svg"):
        plot_ablation(report, root / f"ablation.{ending}")
    return report


def check(ablation: Ablation) -> None:
    """Checks an ablation and the configuration of every arm.

    Raises: UserError listing what is wrong.
    """
    if problems := list(ablation_problems(ablation)):
        raise UserError("the ablation cannot be used:\n  " + "\n  ".join(problems))
    root = ablation.base.run_path
    if is_run(root) or (root / "data" / MANIFEST_FILE).exists():
        raise UserError(
            f"{root} holds a run of its own: give the ablation a folder with "
            f"--workdir {root}-ablation"
        )
    configs = [arm_config(ablation.base, arm) for arm in ablation.arms]
    for config in configs:
        validate(config)
    elsewhere = ablation.injection is not None or ablation.held_out is not None
    kinds = {_data_key(config) for config in configs}
    if len(kinds) > 1 and not elsewhere:
        raise UserError(
            "the arms differ in their data, so preparation would hold out other pairs in each: "
            "give the ablation `held_out`, a source that no arm trains on, or an `injection`"
        )


def _data_key(config: RunConfig) -> str:
    return json.dumps(prepared_config(config.data), sort_keys=True)


def _prepared(ablation: Ablation, injected: Injected | None, progress: bool) -> list[_Prepared]:
    """Prepares the data of every arm, once where they are the same."""
    root, base = ablation.base.run_path, ablation.base
    held_out = ablation.held_out
    if injected is not None:
        base = replace(base, data=replace(base.data, sources=(injected.source,)))
        held_out = injected.held_out
    given = [source_task(held_out)] if held_out is not None else []
    folders: dict[str, Path] = {}
    arms = []
    for arm in ablation.arms:
        config = arm_config(base, arm)
        data = folders.setdefault(_data_key(config), root / "data" / arm.name)
        config = replace(config, data_dir=str(data))
        say(f"{arm.name}: prepare {data}", enabled=progress)
        manifest = prepare(config.data, data, progress)
        tasks = given or held_out_retrieval(manifest, data)
        if not tasks:
            raise UserError(
                "nothing is held out to evaluate on: set data.eval_pairs, or give the ablation "
                "`held_out`"
            )
        if given:
            check_unseen(tasks, manifest, data, arm.name)
        arms.append(_Prepared(arm.name, dict(arm.changes), config, manifest, tasks))
    return arms


def _run(arm: _Prepared, seed: int, root: Path, where: str, progress: bool) -> dict[str, float]:
    """Trains and measures an arm with one seed, or reads what an earlier call measured."""
    config = replace(
        arm.config,
        workdir=str(root / arm.name / f"seed-{seed}"),
        train=replace(arm.config.train, seed=seed),
    )

    def trained() -> dict[str, float]:
        say(where, enabled=progress)
        train(config)
        embedder = Embedder.from_run(config.run_path, batch_rows=config.evaluate.batch_rows)
        return measure(config, embedder, arm.tasks, arm.manifest)

    measured: dict[str, float] = _kept(config.run_path / "results.json", _key(config, arm), trained)
    shown = ", ".join(f"{name} {100 * value:.2f}%" for name, value in measured.items())
    say(f"{where}: {shown}", enabled=progress)
    return measured


def _references(arm: _Prepared, seed: int, root: Path) -> dict[str, dict[str, float]]:
    """BM25, and the model that the first seed starts from, on what all arms are measured on."""
    config = replace(arm.config, train=replace(arm.config.train, seed=seed))

    def measured() -> dict[str, dict[str, float]]:
        untrained = Embedder(
            initial_params(config, make_mesh()),
            config.model,
            load_tokenizer(config.data_path / "tokenizer"),
            pooling=config.pooling,
            prompts=config.data.prompts,
            max_tokens=max(config.feed.query_tokens, config.feed.positive_tokens),
            batch_rows=config.evaluate.batch_rows,
        )
        return {
            "untrained": measure(config, untrained, arm.tasks, arm.manifest),
            "bm25": evaluate_retrieval(arm.tasks, {}, config.evaluate.top_k)["average"]["bm25"],
        }

    return _kept(root / "references.json", _key(config, arm), measured)


def _key(config: RunConfig, arm: _Prepared) -> dict[str, Any]:
    """What a run's figures depend on."""
    return unchangeable_fields(config) | {
        "evaluate.top_k": config.evaluate.top_k,
        "prepared data": file_sha256(config.data_path / MANIFEST_FILE),
        "held-out pairs": tasks_key(arm.tasks),
    }


def _kept(path: Path, key: dict[str, Any], make: Callable[[], Any]) -> Any:
    """Figures that are made once.

    Args:
      path: file that they are kept in.
      key: what they depend on.
      make: makes them, as a JSON value.
    Raises: UserError when the file holds the figures of something else.
    """
    if path.is_file():
        try:
            kept = json.loads(path.read_text(encoding="utf-8"))
            before, values = kept["of"], kept["measures"]
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(f"{path} is damaged ({error}): delete it to measure again") from error
        if changes := difference(before, key):
            raise UserError(
                f"{path} was measured with another configuration:\n  "
                + "\n  ".join(changes)
                + "\nundo these, or give another folder with --workdir"
            )
        return values
    values = make()
    write_json(path, {"of": key, "measures": values})
    return values


def _arm_report(
    arm: _Prepared, runs: Sequence[dict[str, float]], injected: Injected | None
) -> ArmReport:
    sources = arm.manifest.sources
    removed: dict[str, int] = {}
    for source in sources:
        for stage in source.stages:
            removed[stage.stage] = removed.get(stage.stage, 0) + sum(stage.dropped.values())
    return ArmReport(
        name=arm.name,
        changes=arm.changes,
        read=sum(source.read for source in sources),
        trained_on=arm.manifest.train_records,
        removed=removed,
        measures={name: tuple(run[name] for run in runs) for name in runs[0]},
        found=detections(arm.config.data_path, sources[0], injected.planted) if injected else {},
    )
