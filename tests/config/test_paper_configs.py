import socket

import pytest

from jina_jax.config.files import load_config, load_phases
from jina_jax.config.validation import validate
from jina_jax.sources.catalogue import FAMILIES, entries

BY_NAME = {entry.name: entry for entry in entries().values()}


@pytest.fixture
def config(request, monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("loading a config must not reach the network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    loaded = load_config(request.param)
    validate(loaded)
    return loaded


def families(config):
    return {BY_NAME[source.name].family for source in config.data.sources}


@pytest.mark.parametrize("config", ["jina_v1_pairs"], indirect=True)
def test_pairs_cover_every_family_that_has_pairs_with_the_filters_on(config):
    assert {BY_NAME[s.name].holds for s in config.data.sources} == {"pairs"}
    # Code is no family of the paper; negation has triplets only.
    assert families(config) == set(FAMILIES) - {"code", "negation"}
    assert config.data.language.enabled and config.data.language.languages == ("en",)
    assert config.data.decontamination.sets
    consistency = config.data.consistency
    assert (consistency.enabled, consistency.top_k, consistency.sample_size) == (True, 2, 10**6)
    assert "sts_benchmark" not in {source.name for source in config.data.sources}


@pytest.mark.parametrize("config", ["jina_v1_triplets"], indirect=True)
def test_triplets_hold_the_negation_set_and_skip_the_language_filter(config):
    assert {BY_NAME[s.name].holds for s in config.data.sources} == {"triplets"}
    assert "negation" in families(config) and len(families(config)) >= 7
    assert not config.data.language.enabled
    assert (config.data.margin.enabled, config.data.margin.threshold) == (True, 0.2)


def test_triplets_follow_pairs_from_where_they_end():
    pairs, triplets = load_phases("jina_v1")
    assert pairs == load_config("jina_v1_pairs") == load_config("jina_v1:jina_v1_pairs")
    assert triplets.train.initial_weights == "runs/jina_v1_pairs"
    assert pairs.data.tokenizer == triplets.data.tokenizer
