"""Runs with adapters: what trains, and the same model merged, as a PEFT adapter, and as a run."""

import dataclasses
import json
import shutil
from typing import NamedTuple

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from sentence_transformers import SentenceTransformer

from jina_jax.checkpoint.checkpoints import load_checkpoint
from jina_jax.config import MeshConfig
from jina_jax.config.files import read_run
from jina_jax.devices.mesh import make_mesh
from jina_jax.errors import UserError
from jina_jax.evaluate.run import evaluate
from jina_jax.export.adapter import check_base
from jina_jax.export.run import export
from jina_jax.inference.embedder import Embedder
from jina_jax.inference.initial import initial_params
from jina_jax.train.step import state_shapes
from tests.export.test_families import SHAPES, TEXTS, family_folder
from tests.export.tuned import tune
from tests.marks import some_slow


class Case(NamedTuple):
    """A model, and how adapters of it are trained."""

    pooling: str
    flags: tuple[str, ...]
    scale: float
    trained: int
    """Numbers in the adapters, by hand: rank · (in + out) of each matrix."""
    adapted: tuple[str, ...]
    """Tensors of the first layer that change."""


RANK = ("--lora.rank=4", "--lora.alpha=16")
EVALUATED = (
    "--evaluate.every-steps=6", "--evaluate.keep-best=retrieval/average/ndcg@10",
)  # fmt: skip
CASES = {
    "bert": Case(
        "mean", (*RANK, *EVALUATED), 4.0, 2 * 4 * (4 * (24 + 24) + 2 * (24 + 64)),
        tuple(
            f"encoder.layer.0.{name}.weight" for name in (
                "attention.self.query", "attention.self.key", "attention.self.value",
                "attention.output.dense", "intermediate.dense", "output.dense",
            )
        ),
    ),
    "qwen3": Case(
        "lasttoken", (*RANK, "--lora.rank-stabilised"), 8.0,
        2 * 4 * (2 * (24 + 32) + 2 * (24 + 16) + 3 * (24 + 48)),
        tuple(
            f"layers.0.{name}_proj.weight" for name in (
                "self_attn.q", "self_attn.k", "self_attn.v", "self_attn.o",
                "mlp.gate", "mlp.up", "mlp.down",
            )
        ),
    ),
    "t5": Case(
        "mean", RANK, 4.0, 2 * 4 * (4 * (32 + 32) + 2 * (32 + 64)),
        tuple(
            f"encoder.block.0.layer.{name}.weight" for name in (
                *(f"0.SelfAttention.{name}" for name in "qkvo"),
                "1.DenseReluDense.wi", "1.DenseReluDense.wo",
            )
        ),
    ),
    # Some of the matrices that others hold as one.
    "modernbert": Case(
        "cls", (*RANK, "--lora.targets", "q", "v", "wg"), 4.0, 2 * 4 * (2 * (24 + 24) + (24 + 48)),
        ("layers.0.attn.Wqkv.weight", "layers.0.mlp.Wi.weight"),
    ),
}  # fmt: skip


of_bert = pytest.mark.parametrize("run", ["bert"], indirect=True)


class Run(NamedTuple):
    case: Case
    folder: object
    path: object


@pytest.fixture(scope="module", params=some_slow(["bert"], list(CASES)))
def run(request, sentence_folder, exported, tmp_path_factory):
    case, base = CASES[request.param], tmp_path_factory.mktemp("adapter")
    folder = sentence_folder if request.param == "bert" else exported
    if request.param in SHAPES:
        folder = base / request.param
        family_folder(folder, SHAPES[request.param], case.pooling)
    verbs, flags = ("prepare", "train", "export"), (*case.flags, "--export.adapter")
    tuned = tune(base, folder, verbs, query=16, positive=32, steps=12, flags=flags)
    return Run(case, folder, tuned.run_path)


def test_adapters_alone_train_and_have_moments(run):
    config = read_run(run.path)
    assert config.lora.scale == run.case.scale
    state = state_shapes(config)
    moments = [x for x in jax.tree.leaves(state.opt_state) if x.ndim]
    assert sum(x.size for x in moments) == 2 * run.case.trained
    counts = [x for x in jax.tree.leaves(state.opt_state) if not x.ndim]
    held = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(state.opt_state))
    assert held == 2 * 4 * run.case.trained + 4 * len(counts)


def test_what_has_no_adapter_is_the_bases_bit_by_bit(run):
    before, after = (
        load_file(folder / "model.safetensors") for folder in (run.folder, run.path / "export")
    )
    changed = {name for name in after if np.any(after[name] != before[name])}
    of_first = set(run.case.adapted)
    assert changed == of_first | {name.replace(".0.", ".1.", 1) for name in of_first}


def test_merged_and_adapter_are_one_model_in_sentence_transformers_and_here(run):
    merged = SentenceTransformer(str(run.path / "export"), device="cpu")
    wanted = merged.encode(TEXTS, batch_size=1)
    alone = SentenceTransformer(str(run.path / "export" / "adapter"), device="cpu")
    np.testing.assert_allclose(alone.encode(TEXTS, batch_size=1), wanted, rtol=0, atol=1e-6)
    base = SentenceTransformer(str(run.folder), device="cpu")
    base.max_seq_length = merged.max_seq_length
    before = base.encode(TEXTS, batch_size=1)
    assert np.abs(before - wanted).max() > 1e-2
    base.load_adapter(str(run.path / "export" / "adapter"))
    np.testing.assert_allclose(base.encode(TEXTS, batch_size=1), wanted, rtol=0, atol=1e-6)
    for place in (run.path, run.path / "export"):
        np.testing.assert_allclose(Embedder.load(place).encode(TEXTS), wanted, rtol=0, atol=1e-6)


@of_bert
def test_evaluation_while_training_is_of_the_merged_model(run):
    """The best step is what the run is afterwards, and scores as it did."""
    lines = [json.loads(line) for line in (run.path / "evaluations.jsonl").open()]
    assert [line["step"] for line in lines] == [6, 12]
    best = max(lines, key=lambda line: line["retrieval/average/ndcg@10"])
    assert load_checkpoint(run.path).step == best["step"]
    found = evaluate(read_run(run.path)).retrieval["pairs"]
    for measure, value in found["trained"].items():
        assert value == pytest.approx(best[f"retrieval/pairs/{measure}"], abs=1e-6)
    assert found["trained"] != found["untrained"]


@of_bert
def test_a_run_with_adapters_is_a_start_with_them_merged(run):
    train = dataclasses.replace(read_run(run.path).train, initial_weights=str(run.path))
    config = dataclasses.replace(read_run(run.path), train=train)
    begun = initial_params(config, make_mesh(MeshConfig(data=1)))
    trained = load_checkpoint(run.path)
    for one, two in zip(jax.tree.leaves(begun), jax.tree.leaves(trained.params), strict=True):
        np.testing.assert_array_equal(one, two)
    with pytest.raises(UserError, match="which is a run and no model that others load"):
        check_base(config)


@of_bert
def test_a_base_that_has_changed_is_refused_and_the_export_stays(run, tmp_path):
    shutil.copytree(run.folder, tmp_path / "base")
    path = tmp_path / "base" / "model.safetensors"
    tensors = load_file(path)
    name = next(name for name in tensors if name.endswith("LayerNorm.weight") or "norm" in name)
    tensors[name] = tensors[name] + 1e-3
    save_file(tensors, path, metadata={"format": "pt"})
    config = read_run(run.path)
    train = dataclasses.replace(config.train, initial_weights=str(tmp_path / "base"))
    before = {p: p.read_bytes() for p in (run.path / "export").rglob("*") if p.is_file()}
    adapter = dataclasses.replace(config.export, adapter=True)
    with pytest.raises(UserError, match="base is not what the run started from"):
        export(dataclasses.replace(config, train=train, export=adapter))
    assert before == {p: p.read_bytes() for p in (run.path / "export").rglob("*") if p.is_file()}


@of_bert
def test_an_export_without_the_adapter_leaves_none_behind(run):
    config = read_run(run.path)
    given = dataclasses.replace(config.export, output_dir=str(run.path.parent / "plain"))
    for adapter in (True, False):
        folder = export(
            dataclasses.replace(config, export=dataclasses.replace(given, adapter=adapter))
        )
        assert (folder / "adapter").is_dir() == adapter


@of_bert
def test_a_base_that_nobody_else_has_is_not_uploaded(run):
    config = read_run(run.path)
    given = dataclasses.replace(config.export, adapter=True, push_to="me/mine")
    with pytest.raises(UserError, match="a folder that nobody else has"):
        check_base(dataclasses.replace(config, export=given))
