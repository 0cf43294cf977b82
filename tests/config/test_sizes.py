"""The five sizes of T5, the large models of other families, and their settings for machines."""

import math

import pytest
from jax.sharding import AbstractMesh

from jina_jax.config.files import load_config, load_phases
from jina_jax.config.validation import validate
from jina_jax.devices.mesh import AXES, check_divides
from jina_jax.errors import UserError
from jina_jax.model.encoder import parameter_count
from jina_jax.plan.topology import find_topology

PARAMETERS = {
    "small": 35_330_816, "base": 109_628_544, "large": 334_939_648, "xl": 1_223_527_424,
    "xxl": 4_762_310_656,
}  # fmt: skip
"""Of T5's encoders, as transformers counts them."""
OTHERS = {
    "bert_large": 334_092_288, "xlmr_large": 558_840_832, "modernbert_large": 394_781_696,
    "qwen3_0_6b": 595_776_512,
}  # fmt: skip
"""Of the published models, without poolers and heads."""


def machines(size):
    import importlib

    return list(importlib.import_module(f"jina_jax.configs.{size}").MACHINES)


@pytest.mark.parametrize("size", PARAMETERS | OTHERS)
def test_each_has_the_parameters_of_the_paper(size):
    assert parameter_count(load_config(size).model) == (PARAMETERS | OTHERS)[size]


@pytest.mark.parametrize("size", OTHERS)
def test_other_families_start_from_a_model_with_its_tokenizer(size):
    config = load_config(size)
    assert config.data.tokenizer.source == config.train.initial_weights != ""
    assert config.pooling.mode == ("lasttoken" if size == "qwen3_0_6b" else "mean")


@pytest.mark.parametrize("size", PARAMETERS | OTHERS)
def test_settings_for_two_tpu_slices_and_eight_gpus_fit_their_devices(size):
    slices = 0
    for machine in machines(size):
        config = load_config(f"{size}@{machine}")
        validate(config)
        assert config.machine == machine
        chips = 8
        if machine != "h100:8":
            chips = find_topology(machine).chips
            slices += 1
        inner = config.mesh.fsdp * config.mesh.tensor
        assert chips % inner == 0
        shape = (chips // inner, config.mesh.fsdp, config.mesh.tensor)
        check_divides(config, AbstractMesh(shape, AXES))
        assert math.prod(shape) == chips
        assert config.feed.global_batch_size >= 16_384
        assert config.model.compute_dtype == "bfloat16"
    assert slices >= (2 if size in PARAMETERS else 1) and "h100:8" in machines(size)


def test_a_machine_without_settings_is_refused_with_those_that_have():
    with pytest.raises(UserError, match=r"no settings for 'v5e:1x1', only for v5e:16x16, v6e:8x8"):
        load_config("base@v5e:1x1")
    with pytest.raises(UserError, match=r"demo: its get_config\(\) takes no machine"):
        load_config("demo@v5e:1x1")


def test_a_phase_and_a_machine_do_not_get_into_each_others_way(tmp_path):
    path = tmp_path / "two.py"
    path.write_text(
        "from jina_jax.config.run import RunConfig\n"
        "def get_config(machine=''):\n"
        "    return RunConfig(name='a', machine=machine), RunConfig(name='b', machine=machine)\n"
    )
    found = load_config(f"{path}:b@v5e:16x16")
    assert (found.name, found.machine) == ("b", "v5e:16x16")
    assert [phase.machine for phase in load_phases(f"{path}@x:1")] == ["x:1", "x:1"]
    with pytest.raises(UserError, match=r"two.py:a@v5e:16x16 or .*two.py:b@v5e:16x16"):
        load_config(f"{path}@v5e:16x16")
