"""The package from Python."""

import dataclasses
import subprocess
import sys

import numpy as np
import pytest

import jina_jax
from jina_jax.config import TrainConfig
from jina_jax.errors import UserError
from tests.prepared import tiny_config, write_jsonl

TEXTS = ["one two", "the number 12", "three four five"]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A configuration, and what each function returned and was called with."""
    folder = tmp_path_factory.mktemp("api")
    write_jsonl(folder, 300)
    config = tiny_config(str(folder))
    numbers = dataclasses.replace(config.data.sources[1], weight=None)
    config = dataclasses.replace(
        config,
        data=dataclasses.replace(config.data, sources=(numbers,)),
        evaluate=dataclasses.replace(config.evaluate, every_steps=3, precisions=("int8", "binary")),
        train=TrainConfig(num_steps=6, log_every_steps=2, checkpoint_every_steps=3),
        optim=dataclasses.replace(config.optim, warmup_steps=None),
    )
    manifest = jina_jax.api.prepare(config)
    steps, evaluations = [], []
    state = jina_jax.api.train(
        config,
        on_step=lambda step, metrics: steps.append((step, metrics["loss"])),
        on_evaluation=lambda step, scores: evaluations.append((step, scores)),
    )
    scores = jina_jax.api.evaluate(config)
    return config, manifest, state, steps, evaluations, scores


def test_each_returns_what_it_made(run):
    config, manifest, state, steps, evaluations, scores = run
    assert manifest.train_records > 100 and (config.data_path / "manifest.json").is_file()
    assert int(state.step) == 6
    assert [step for step, _ in steps] == [2, 4, 6]
    assert all(isinstance(loss, float) for _, loss in steps)
    assert [step for step, _ in evaluations] == [3, 6]
    last = evaluations[-1][1]["retrieval/numbers/ndcg@10"]
    assert last == pytest.approx(scores.retrieval["numbers"]["trained"]["ndcg@10"], abs=1e-5)


def test_a_model_is_loaded_from_a_run_and_from_its_export(run):
    config = run[0]
    trained, exported = jina_jax.load(config.run_path), jina_jax.load(jina_jax.api.export(config))
    z_ND = trained.encode(TEXTS, batch_size=4)
    assert z_ND.shape == (3, trained.dimensions) and z_ND.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(z_ND, axis=1), 1, atol=1e-5)
    np.testing.assert_allclose(exported.encode(TEXTS), z_ND, atol=1e-6)
    np.testing.assert_array_equal(trained.encode(TEXTS[0]), trained.encode(TEXTS[:1])[0])
    short = trained.encode(TEXTS, truncate_dim=8)
    expected = z_ND[:, :8] / np.linalg.norm(z_ND[:, :8], axis=1, keepdims=True)
    np.testing.assert_allclose(short, expected, atol=1e-6)
    for wrong in ({"truncate_dim": 33}, {"prompt_name": "none such"}):
        with pytest.raises(UserError):
            trained.encode(TEXTS, **wrong)


def test_precisions_are_measured_beside_float32(run):
    of_systems = run[-1].retrieval["numbers"]
    assert list(of_systems) == ["untrained", "trained", "trained, int8", "trained, binary", "bm25"]
    exact, int8, binary = (of_systems[f"trained{p}"] for p in ("", ", int8", ", binary"))
    assert binary["mrr@10"] != exact["mrr@10"]
    assert int8["mrr@10"] == pytest.approx(exact["mrr@10"], abs=0.05)


def test_embeddings_of_a_precision_in_the_ranges_of_others(run):
    model = jina_jax.load(run[0].run_path)
    z_ND = model.encode(TEXTS)
    ranges = np.stack([z_ND.min(axis=0), z_ND.max(axis=0)])
    many = model.encode(TEXTS, precision="int8")
    assert many.dtype == np.int8 and (many.min(), many.max()) == (-128, 127)
    one = model.encode(TEXTS[1], precision="int8", ranges=ranges)
    assert np.abs(one.astype(int) - many[1]).max() <= 1
    with pytest.raises(UserError, match="has no range to divide"):
        model.encode(TEXTS[1], precision="int8")


def test_similarity_and_search(run):
    model = jina_jax.load(run[0].run_path)
    z_ND = model.encode(TEXTS)
    np.testing.assert_allclose(model.similarity(z_ND, z_ND), z_ND @ z_ND.T, atol=1e-6)
    assert model.similarity(z_ND[0], z_ND).shape == (1, 3)
    (first, second) = model.search([TEXTS[1], TEXTS[2]], TEXTS, top_k=2)
    assert first[0].passage == TEXTS[1] and second[0].passage == TEXTS[2]
    assert first[0].score == pytest.approx(1, abs=1e-5) and len(first) == 2
    assert model.search(TEXTS[0], TEXTS, top_k=1)[0][0].passage == TEXTS[0]


def test_negatives_are_mined_and_models_merged(run, tmp_path):
    config = run[0]
    found = jina_jax.api.mine(config)
    assert sum(source.triplets for source in found.sources) > 0
    assert (config.mine_path / "numbers.jsonl").is_file()
    jina_jax.api.merge([f"{config.run_path}@3", f"{config.run_path}@6"], tmp_path / "merged")
    assert jina_jax.load(tmp_path / "merged").dimensions == 32


def test_a_report_is_written(run):
    assert "<html" in jina_jax.api.report(run[0]).read_text()


def test_a_callback_that_fails_ends_the_run_and_the_same_call_goes_on(run, tmp_path):
    config = dataclasses.replace(run[0], workdir=str(tmp_path / "run"))

    def fail(step, metrics):
        if step == 4:
            raise RuntimeError("enough")

    with pytest.raises(RuntimeError, match="enough"):
        jina_jax.api.train(config, on_step=fail)
    seen = []
    jina_jax.api.train(config, on_step=lambda step, _: seen.append(step))
    assert seen[0] in (2, 4) and seen[-1] == 6


def test_importing_the_package_imports_nothing_heavy():
    code = (
        "import sys, jina_jax; "
        "heavy = {'jax', 'numpy', 'pyarrow', 'tyro', 'tokenizers'} & set(sys.modules); "
        "assert not heavy, heavy; assert 'load' in dir(jina_jax)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
    with pytest.raises(AttributeError, match="no attribute 'lood'"):
        _ = jina_jax.lood
