"""From the scores of a filter's model to training that learns from them."""

from dataclasses import replace

import pytest

from jina_jax.config import ConsistencyConfig, DataConfig, LossConfig, SourceConfig, TokenizerConfig
from jina_jax.errors import UserError
from jina_jax.prepare.run import prepare
from jina_jax.train.loop import train
from jina_jax.train.metrics.writer import read_metrics
from tests.pairs import pair, write
from tests.prepared import tiny_config


@pytest.fixture
def run(tmp_path):
    path = write(tmp_path / "pairs.jsonl", [pair(i) for i in range(150)])
    source = SourceConfig("numbers", paths=(str(path),))
    small = tiny_config(str(tmp_path))
    return replace(
        small,
        data=DataConfig((source,), TokenizerConfig("train", 50), eval_pairs=10),
        loss=LossConfig(distill_weight=20.0, query_weight=0.1, positive_weight=0.1),
        train=replace(small.train, num_steps=25),
    )


@pytest.mark.slow
def test_training_comes_nearer_to_the_encoder_of_the_filter(run, sentence_folder):
    consistency = ConsistencyConfig(enabled=True, model=str(sentence_folder), top_k=100)
    run = replace(run, data=replace(run.data, consistency=consistency))
    prepare(run.data, run.data_path, progress=False)
    train(run)
    distances = [line["distill_loss"] for line in read_metrics(run.run_path / "metrics.jsonl")]
    assert len(distances) == 25
    assert sum(distances[-5:]) < 0.3 * sum(distances[:5])
    last = read_metrics(run.run_path / "metrics.jsonl")[-1]
    assert last["source/numbers/distill_loss"] == last["distill_loss"]


def test_distilling_from_nothing_is_refused(run):
    prepare(run.data, run.data_path, progress=False)
    with pytest.raises(UserError, match=r"distill_weight=20.0 and no source .* data.consistency"):
        train(run)
