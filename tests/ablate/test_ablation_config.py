import dataclasses

import pytest

from jina_jax.ablate.run import check
from jina_jax.config import Ablation, Arm, RunConfig, SourceConfig
from jina_jax.config.ablate import arm_config
from jina_jax.config.files import load_ablation, load_config
from jina_jax.errors import UserError
from tests.ablate.sources import filters, losses


def test_an_arm_changes_its_fields_and_no_other():
    base = RunConfig("base")
    changed = arm_config(base, Arm("a", {"loss.margin": 0, "data.language.enabled": True}))
    assert (changed.loss.margin, changed.data.language.enabled) == (0.0, True)
    assert isinstance(changed.loss.margin, float)
    back = dataclasses.replace(
        changed,
        loss=dataclasses.replace(changed.loss, margin=base.loss.margin),
        data=dataclasses.replace(changed.data, language=base.data.language),
    )
    assert back == base


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"loss.margni": 0.0}, "loss.margni is no field: did you mean 'margin'"),
        ({"loss.margin.x": 0.0}, "is no field"),
        ({"loss.margin": "0"}, "is str '0'; float is wanted"),
        ({"data.language.enabled": 1}, "is int 1; bool is wanted"),
        ({"train.seed": 3}, "changes train.seed, which is set for each run"),
    ],
)
def test_a_slip_in_an_arm_is_named(changes, message):
    with pytest.raises(UserError, match=message):
        arm_config(RunConfig("base"), Arm("a", changes))


def problems(ablation):
    with pytest.raises(UserError) as caught:
        check(ablation)
    return str(caught.value)


def test_an_ablation_that_cannot_be_compared_is_refused(tmp_path):
    good = filters(tmp_path)
    check(good)
    assert "two arms or more" in problems(dataclasses.replace(good, arms=good.arms[:1]))
    assert "two arms are named 'none'" in problems(
        dataclasses.replace(good, arms=(*good.arms, Arm("none")))
    )
    assert "ASCII letters" in problems(dataclasses.replace(good, arms=(Arm("a/b"), Arm("c"))))
    base = dataclasses.replace(good.base, data=dataclasses.replace(good.base.data, eval_pairs=9))
    assert "data.eval_pairs=9 must be 0" in problems(dataclasses.replace(good, base=base))
    shares = dataclasses.replace(good.injection, mismatched_share=0.9)
    assert "leave clean pairs" in problems(dataclasses.replace(good, injection=shares))
    # Without a common held-out source each arm would be measured on other pairs.
    own = losses(tmp_path)
    check(own)
    assert "the arms differ in their data" in problems(
        dataclasses.replace(own, arms=(Arm("a"), Arm("b", {"data.language.enabled": True})))
    )
    assert "must be greater than 0" in problems(
        dataclasses.replace(own, arms=(Arm("a"), Arm("b", {"loss.temperature": 0.0})))
    )


@pytest.mark.parametrize("file", ["checkpoints/1/x", "data/manifest.json"])
def test_the_folder_of_a_run_is_left_to_it(tmp_path, file):
    ablation = losses(tmp_path)
    check(ablation)
    (ablation.base.run_path / file).parent.mkdir(parents=True)
    (ablation.base.run_path / file).touch()
    with pytest.raises(UserError, match=r"holds a run of its own.*--workdir .*-ablation"):
        check(ablation)


def test_a_config_says_which_verb_it_is_for():
    for name in ("ablation_filters", "ablation_losses"):
        loaded = load_ablation(name)
        assert isinstance(loaded, Ablation)
        check(loaded)
        with pytest.raises(UserError, match=f"holds an ablation, not a run: .*ablate {name}"):
            load_config(name)
    with pytest.raises(UserError, match="demo holds a run, not an ablation"):
        load_ablation("demo")


def test_the_filters_are_those_of_the_paper():
    loaded = load_ablation("ablation_filters")
    assert [arm.name for arm in loaded.arms] == ["none", "language", "consistency", "both"]
    assert (loaded.injection.mismatched_share, loaded.injection.foreign_share) == (0.30, 0.15)
    both = arm_config(loaded.base, loaded.arms[3]).data
    assert both.language.enabled and both.consistency.enabled and both.consistency.top_k == 2
    assert not loaded.base.data.language.enabled and not loaded.base.data.consistency.enabled


def test_a_held_out_source_and_an_injection_exclude_each_other(tmp_path):
    ablation = dataclasses.replace(filters(tmp_path), held_out=SourceConfig("x", paths=("x",)))
    assert "leave one of them out" in problems(ablation)
