"""The `import` verb: a Hugging Face or sentence-transformers folder as a run."""

import base64
import re
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from sentencepiece import sentencepiece_model_pb2 as sentencepiece_proto

from jina_jax.checkpoint.checkpoints import Checkpoints
from jina_jax.config import (
    DataConfig,
    FeedConfig,
    ModelConfig,
    RunConfig,
    T5Config,
    TokenizerConfig,
    TrainConfig,
)
from jina_jax.config.files import RUN_FILE, to_json
from jina_jax.errors import UserError
from jina_jax.inference.model_folder import (
    SentenceModel,
    find_folder,
    read_params,
    read_sentence_config,
)
from jina_jax.system.atomic import sync, write_atomically
from jina_jax.system.hashing import content_key
from jina_jax.system.untrusted import inner_path, objects_within, read_json
from jina_jax.system.workspace import check_writable, workspace
from jina_jax.text.tokenizer import (
    SPIECE_FILE,
    TOKENIZER_FILE,
    build_tokenizer,
    check_ids,
    load_tokenizer,
)


def import_folder(path_or_id: str, run_path: Path) -> RunConfig:
    """Writes a run folder with the model as its checkpoint of step 0.

    Args:
      path_or_id: a folder, or an id of the Hugging Face hub: an encoder, alone or as the first
        module of a sentence-transformers folder.
      run_path: folder to make; it appears whole or not at all.
    Returns: the configuration of the run.
    Raises: UserError when the folder is no such model, or `run_path` is there already.
    """
    check_is_new(run_path)
    folder = find_folder(path_or_id)
    model = read_sentence_config(folder)
    params = read_params(folder, model)
    config = imported_config(path_or_id, run_path, model)
    write_run(
        run_path, config, params, partial(copy_tokenizer, folder, shape=model.config),
        {"imported": str(path_or_id)},
    )  # fmt: skip
    return config


def check_is_new(run_path: Path) -> None:
    """Refuses a folder that is there, or could not be made, before any work is done for it.

    Raises: UserError, OSError.
    """
    if run_path.exists():
        raise UserError(f"{run_path} is there already; name a folder that isn't, or remove it")
    check_writable(run_path.parent)


def write_run(
    run_path: Path,
    config: RunConfig,
    params: Any,
    write_tokenizer: Callable[[Path], None],
    metadata: dict[str, Any],
) -> None:
    """Makes a run folder with parameters as the checkpoint of step 0.

    Args:
      run_path: it appears whole or not at all; the next call removes what a killed one left.
      config: of the run.
      params: float32 arrays.
      write_tokenizer: puts its files into an existing folder.
      metadata: of the checkpoint.
    Raises: UserError when another process makes the same folder.
    """
    with workspace(run_path, content_key(metadata)) as space:
        made = space.result
        # Nothing of it takes long: what a killed process left is made anew.
        shutil.rmtree(made)
        (made / "tokenizer").mkdir(parents=True)
        write_tokenizer(made / "tokenizer")
        with Checkpoints(made / "checkpoints", keep=1) as checkpoints:
            checkpoints.save_params(0, jax.tree.map(jnp.asarray, params), metadata)
        (made / RUN_FILE).write_text(to_json(config) + "\n", encoding="utf-8")
        for path in made.rglob("*"):
            sync(path)


def run_name(run_path: Path) -> str:
    """A name that a configuration may have, after the run's folder."""
    return re.sub(r"[^A-Za-z0-9_.-]+", "-", run_path.name).strip("-_.") or "imported"


def imported_config(name: str, run_path: Path, model: SentenceModel) -> RunConfig:
    """The configuration of a run of step 0 with the model of a folder.

    Args:
      name: of the folder, as it was given.
      run_path: of the run.
      model: what the folder says of it.
    """
    max_tokens = model.max_tokens
    return RunConfig(
        name=run_name(run_path),
        workdir=str(run_path.absolute()),
        data=DataConfig(
            tokenizer=TokenizerConfig(source=str(run_path.absolute() / "tokenizer")),
            prompts=model.prompts,
            max_text_tokens=max_tokens,
        ),
        feed=FeedConfig(query_tokens=max_tokens, positive_tokens=max_tokens, row_tokens=max_tokens),
        model=model.config,
        pooling=model.pooling,
        train=TrainConfig(initial_weights=name),
    )


def copy_tokenizer(folder: Path, out_dir: Path, shape: ModelConfig) -> None:
    """The tokenizer as it is; a T5's with the `spiece.model` that transformers 5 doesn't write.

    Args:
      folder: of the model.
      out_dir: existing folder.
      shape: of the model.
    Raises: UserError when there is none, or it is another model's.
    """
    if not isinstance(shape, T5Config):
        build_tokenizer(TokenizerConfig(source=str(folder)), None, out_dir)
        check_ids(load_tokenizer(out_dir), shape.vocab_size, folder)
        return
    if (folder / SPIECE_FILE).is_file():
        source = inner_path(folder, SPIECE_FILE)
    elif (folder / TOKENIZER_FILE).is_file():
        source = out_dir / SPIECE_FILE
        write_atomically(source, _spiece(inner_path(folder, TOKENIZER_FILE)))
    else:
        raise UserError(f"{folder} holds neither {SPIECE_FILE} nor {TOKENIZER_FILE}")
    build_tokenizer(TokenizerConfig(source=str(source)), None, out_dir)
    check_ids(load_tokenizer(out_dir), shape.vocab_size, folder)


def _spiece(path: Path) -> bytes:
    """The SentencePiece model that a `tokenizer.json` of a T5 was made from."""
    document = read_json(path)
    model = document.get("model")
    if not isinstance(model, dict) or model.get("type") != "Unigram":
        raise UserError(f"{path} holds no unigram vocabulary, as T5's is")
    proto = sentencepiece_proto.ModelProto()
    try:
        for number, (piece, score) in enumerate(model["vocab"]):
            if not re.fullmatch(r"<extra_id_\d+>", piece):
                proto.pieces.add(piece=piece, score=score, type=_kind(number))
            # Those follow the pieces, and no spiece.model of T5 has them.
        charsmaps = [
            step["precompiled_charsmap"]
            for step in objects_within(document.get("normalizer"))
            if step.get("type") == "Precompiled" and step["precompiled_charsmap"]
        ]
        charsmap = base64.b64decode(charsmaps[-1] if charsmaps else "", validate=True)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UserError(f"{path} is no tokenizer of a T5 ({error})") from error
    trainer = proto.trainer_spec
    trainer.model_type, trainer.vocab_size = trainer.UNIGRAM, len(proto.pieces)
    trainer.pad_id, trainer.eos_id, trainer.unk_id, trainer.bos_id = 0, 1, 2, -1
    spec = proto.normalizer_spec
    spec.name, spec.add_dummy_prefix = "from_tokenizer_json", True
    spec.remove_extra_whitespaces = spec.escape_whitespaces = True
    spec.precompiled_charsmap = charsmap
    return proto.SerializeToString()


def _kind(number: int) -> int:
    kinds = sentencepiece_proto.ModelProto.SentencePiece
    return {0: kinds.CONTROL, 1: kinds.CONTROL, 2: kinds.UNKNOWN}.get(number, kinds.NORMAL)
