"""The `export` verb: a run's newest checkpoint as a Hugging Face folder, here and on the hub."""

import json
import os
import re
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

import pyarrow.parquet as pq
from huggingface_hub import EvalResult

from jina_jax.checkpoint.checkpoints import load_checkpoint
from jina_jax.config import RunConfig
from jina_jax.errors import UserError
from jina_jax.evaluate.run import RESULT_FILES
from jina_jax.export.adapter import check_base, write_adapter
from jina_jax.export.huggingface import export_huggingface, verify_export
from jina_jax.export.model_card import render_card
from jina_jax.shards.manifest import SourceSummary, load_manifest
from jina_jax.system.workspace import check_writable

_TEXTS_COMPARED = 64


def export(config: RunConfig) -> Path:
    """Writes the run's export folder and compares it with the checkpoint.

    With `export.push_to`, uploads it too.

    Returns: the folder.
    Raises:
      UserError: there is no checkpoint, the folder holds something else, the base of an adapter
        cannot be loaded by others or has changed, or the hub refuses the upload.
      OSError: the folder may not be made.
    """
    check_writable(config.export_path.parent)
    # An imported model comes without data.
    sources = load_manifest(config.data_path).sources if config.data.sources else ()
    base = check_base(config) if config.export.adapter else ""
    trained = load_checkpoint(config.run_path)
    export_huggingface(
        trained.params, trained.config, config.run_path / "tokenizer", config.export_path,
        pooling=trained.pooling, prompts=trained.prompts, max_tokens=trained.max_tokens,
        card=render_card(config, trained, sources, list(_scores(config))),
        onnx=config.export.onnx,
        adapter=partial(write_adapter, trained=trained, base=base) if base else None,
    )  # fmt: skip
    texts = _some_texts(config.data_path, sources)
    verify_export(config.export_path, trained.params, trained.config, texts, trained.pooling)
    if config.export.push_to:
        push(config.export_path, config.export.push_to, private=config.export.private)
    return config.export_path


def _scores(config: RunConfig) -> Iterator[EvalResult]:
    """What `evaluate` measured of the trained model."""
    for kind, file in RESULT_FILES.items():
        path = config.run_path / file
        results = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
        own = {one.name for one in getattr(config.evaluate, kind)}
        for task, systems in results.items():
            if task != "average":
                is_held_out = kind in ("retrieval", "negation") and task not in own
                name = f"{task} (held out)" if is_held_out else task
                dataset_type = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")
                for measure, value in systems["trained"].items():
                    yield EvalResult(kind, dataset_type, name, measure, value)


def _some_texts(data_path: Path, sources: Sequence[SourceSummary]) -> list[str]:
    """Held-out texts of every source, and what a tokenizer might treat in its own way."""
    texts = ["", "a  double space, ünïcode ﬁne\nand a new line", "one", "a few words"]
    for source in sources:
        if source.eval_path:
            rows = pq.read_table(data_path / source.eval_path).slice(0, _TEXTS_COMPARED)
            texts += rows["query"].to_pylist() + rows["positive"].to_pylist()
    return texts


TOKEN_VARIABLE = "HF_TOKEN"  # noqa: S105  The name, not the token.


def push(folder: Path, repository: str, *, private: bool) -> str:
    """Makes the repository where it isn't there, and uploads the folder in one commit.

    The token is read from the environment alone, and never written or printed.

    Args:
      folder: as written by `export_huggingface`.
      repository: OWNER/NAME.
      private: of a new repository.
    Returns: address of the commit.
    Raises: UserError when there is no token, or the hub cannot be reached or refuses.
    """
    token = os.environ.get(TOKEN_VARIABLE, "").strip()
    if not token:
        raise UserError(
            f"export.push_to={repository}: set {TOKEN_VARIABLE} to a token that may write there "
            f"(huggingface.co/settings/tokens); the folder itself is whole: {folder}"
        )
    from huggingface_hub import HfApi

    api = HfApi(token=token)
    try:
        api.create_repo(repository, private=private, exist_ok=True)
        commit = api.upload_folder(
            repo_id=repository, folder_path=folder, commit_message="Export of a checkpoint"
        )
    except Exception as error:  # Offline, no permission, no such owner: each has its own class.
        reason = (str(error).strip().splitlines() or [""])[0].replace(token, "***")
        raise UserError(
            f"export.push_to={repository}: the hub could not take it ({type(error).__name__}: "
            f"{reason}); the folder itself is whole: {folder}"
        ) from None
    return str(commit.commit_url)
