import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jina_jax.config import MixtureConfig, SourceConfig, StageConfig
from jina_jax.config.source import mixture_problems
from jina_jax.errors import UserError
from jina_jax.feed.mixture import interleave, own_weights, plan_mixture


def constant(*weights):
    return [(0, np.array(weights))]


def counts_after(mixture):
    """[T + 1, N]: batches of each source among the first t."""
    sources = mixture.share_KN.shape[1]
    one_hot = mixture.source_T[:, None] == np.arange(sources)
    return np.concatenate([np.zeros((1, sources), int), np.cumsum(one_hot, axis=0)])


def asked_step_by_step(stages, limits, num_batches, linear, parts=16):
    """The integral of the shares, summed up over `parts` parts of every step."""
    starts = [start for start, _ in stages]
    shares = np.array([weights / weights.sum() for _, weights in stages])
    time = (np.arange(num_batches * parts + 1) + 0.5) / parts
    asked = shares[np.searchsorted(starts, time, side="right") - 1]
    if linear:
        asked = np.stack([np.interp(time, starts, column) for column in shares.T], axis=1)
    done, found = np.zeros(len(limits)), []
    for n, share in enumerate(asked):
        if n % parts == 0:
            found.append(done)
        share = np.where(done < limits - 1e-9, share, 0)
        if total := share.sum():
            done = np.minimum(done + share / total / parts, limits)
    return np.array(found)


@st.composite
def mixtures(draw):
    sources = draw(st.integers(1, 6))
    weight = st.one_of(st.just(0.0), st.just(1.0), st.floats(1e-3, 10))
    stages, start = [], 0
    for _ in range(draw(st.integers(1, 4))):
        weights = draw(st.lists(weight, min_size=sources, max_size=sources))
        weights[draw(st.integers(0, sources - 1))] = 1.0
        stages.append((start, np.array(weights)))
        start += draw(st.integers(1, 90))
    limit = st.one_of(st.just(math.inf), st.integers(1, 60).map(float))
    limits = draw(st.lists(limit, min_size=sources, max_size=sources))
    return stages, np.array(limits), draw(st.booleans())


def test_hand_worked_order():
    # Shares 2/3 and 1/3: due at .75, 2.25, 3.75, 5.25 and at 1.5, 4.5.
    mixture = interleave(constant(2.0, 1.0), 6)
    assert mixture.source_T.tolist() == [0, 1, 0, 0, 1, 0]
    assert mixture.ordinal_T.tolist() == [0, 0, 1, 2, 1, 3]


def test_a_limit_by_hand():
    # Halves until both have had 2 at step 4; then source 1 has all: due at 1, 3 and 1, 3, 4.5, ...
    mixture = interleave(constant(1.0, 1.0), 7, limit_N=np.array([2, np.inf]))
    assert mixture.source_T.tolist() == [0, 1, 0, 1, 1, 1, 1]
    assert mixture.asked(3).tolist() == [1.5, 1.5]
    assert mixture.asked(6).tolist() == [2, 4]


def test_what_a_limit_frees_is_shared_in_proportion():
    # 8 of 8 batches by 4 : 3 : 1, then 16 of 3 : 1.
    mixture = interleave(constant(4.0, 3.0, 1.0), 24, limit_N=np.array([4, np.inf, np.inf]))
    assert mixture.drawn(24).tolist() == [4, 3 + 12, 1 + 4]
    np.testing.assert_allclose(mixture.asked(24), [4, 15, 5])


def test_stages_by_hand():
    stages = [(0, np.array([1.0, 0.0])), (4, np.array([0.0, 2.0])), (6, np.array([1.0, 1.0]))]
    assert interleave(stages, 10).source_T.tolist() == [0, 0, 0, 0, 1, 1, 0, 1, 0, 1]


def test_a_straight_line_by_hand():
    # From 1 : 0 to 0 : 1 over 16 steps, in four stairs of 7/8, 5/8, 3/8 and 1/8.
    stages = [(0, np.array([3.0, 0.0])), (16, np.array([0.0, 5.0]))]
    mixture = interleave(stages, 32, linear=True)
    np.testing.assert_allclose(mixture.share_KN[:, 0], [7 / 8, 5 / 8, 3 / 8, 1 / 8, 0])
    assert mixture.drawn(16).tolist() == [8, 8]
    assert mixture.drawn(32).tolist() == [8, 24]
    assert mixture.drawn(8)[0] == 6


@pytest.mark.parametrize(
    "weights", [[1.0], [3.0, 1.0], [0.7, 0.2, 0.1], [5.0, 5.0, 1.0, 1e-3], [1.0] * 9]
)
def test_counts_follow_the_weights_after_every_batch(weights):
    mixture = interleave(constant(*weights), 1000)
    share = np.array(weights) / np.sum(weights)
    counts = counts_after(mixture)
    wanted = np.arange(1001)[:, None] * share[None]
    bound = 0.5 + share * (len(weights) - 2) / 2
    assert (np.abs(counts - wanted) <= bound + 1e-9).all()
    for s in range(len(weights)):
        assert mixture.ordinal_T[mixture.source_T == s].tolist() == list(range(counts[-1, s]))


@settings(deadline=None, max_examples=150)
@given(mixtures())
def test_counts_follow_stages_lines_and_limits(drawn):
    stages, limits, linear = drawn
    mixture = interleave(stages, 200, limit_N=limits, linear=linear)
    length, sources = len(mixture.source_T), len(limits)
    counts = counts_after(mixture)
    assert (counts <= limits).all()
    asked = np.array([mixture.asked(t) for t in range(length + 1)])
    if length == 200:
        np.testing.assert_allclose(asked.sum(axis=1), np.arange(201), atol=1e-9)
        bound = 0.5 + mixture.share_KN.max(axis=0) * max(sources - 2, 0) / 2
        assert (np.abs(counts - asked) <= bound + 1e-9).all()
        # What is asked is what was configured.
        wanted = asked_step_by_step(stages, limits, 200, linear)
        assert np.abs(wanted - asked).max() < 0.125 * linear * sources + 0.1 * sources
    for s in range(sources):
        assert mixture.ordinal_T[mixture.source_T == s].tolist() == list(range(counts[-1, s]))


@settings(deadline=None, max_examples=100)
@given(mixtures(), st.integers(1, 150))
def test_a_longer_run_begins_like_a_shorter_one(drawn, length):
    stages, limits, linear = drawn
    part = interleave(stages, length, limit_N=limits, linear=linear)
    whole = interleave(stages, 1000, limit_N=limits, linear=linear)
    assert np.array_equal(part.source_T, whole.source_T[:length])
    assert np.array_equal(part.ordinal_T, whole.ordinal_T[:length])


def test_a_million_batches_of_thirty_sources_are_small():
    rng = np.random.default_rng(0)
    stages = [(0, rng.random(30)), (900_000, rng.random(30))]
    mixture = interleave(stages, 1_000_000, linear=True)
    assert sum(array.nbytes for array in vars(mixture).values()) < 9e6
    assert np.abs(mixture.drawn(1_000_000) - mixture.asked(1_000_000)).max() <= 0.5 + 0.1 * 28 / 2


def test_own_weights_by_hand():
    records = np.array([100, 400, 10_000])

    def weights(temperature, *given, limit=None):
        config = MixtureConfig(temperature=temperature, size_limit=limit)
        return own_weights(given or [None] * 3, records, config)

    assert weights(None).tolist() == [1, 1, 1]
    assert weights(None, None, 0.5, None).tolist() == [1, 0.5, 1]
    # Square roots 10, 20 and 100; with a limit of 400, 10, 20 and 20.
    np.testing.assert_allclose(weights(2), np.array([10, 20, 100]) * 3 / 130)
    np.testing.assert_allclose(weights(2, limit=400), np.array([10, 20, 20]) * 3 / 50)
    np.testing.assert_allclose(weights(1), records * 3 / 10_500)
    np.testing.assert_allclose(weights(1e9), [1, 1, 1], rtol=1e-6)
    # Those with a weight keep it, and the others share what equal weights would have.
    np.testing.assert_allclose(weights(2, None, None, 7.0), [2 / 3, 4 / 3, 7])


def planned(num_steps=100, temperature=None, stages=(), **sources):
    """Each source as (records, weight, max_epochs); batches of 10."""
    return plan_mixture(
        [SourceConfig(n, weight=w, max_epochs=e) for n, (_, w, e) in reversed(sources.items())],
        {name: records for name, (records, _, _) in sources.items()},
        MixtureConfig(temperature=temperature, stages=stages),
        batch_size=10, num_steps=num_steps,
    )  # fmt: skip


def test_a_plan_from_configuration():
    mixture = planned(a=(1000, None, None), b=(250, 3.0, None))
    assert mixture.drawn(100).tolist() == [25, 75]
    # 1.5 epochs of 250 records are 37 whole batches.
    mixture = planned(a=(1000, None, None), b=(250, 3.0, 1.5))
    assert mixture.drawn(100).tolist() == [63, 37]
    mixture = planned(a=(100, None, None), b=(400, None, None), temperature=2)
    np.testing.assert_allclose(mixture.asked(30), [10, 20])
    # A stage changes the sources it names, and the next one leaves the rest as they were.
    stages = (StageConfig(20, (("a", 3.0),)), StageConfig(60, (("b", 0.0),)))
    mixture = planned(a=(1000, None, None), b=(1000, None, None), stages=stages)
    assert [mixture.drawn(t).tolist() for t in (20, 60, 100)] == [[10, 10], [40, 20], [80, 20]]


def test_sources_that_do_not_last_are_refused():
    with pytest.raises(
        UserError, match=r"lasts for 30 batches, fewer than train.num_steps=31: a, b had"
    ):
        planned(31, a=(100, None, 1.0), b=(200, None, 1.0))
    planned(30, a=(100, None, 1.0), b=(200, None, 1.0))
    # Source b would last, but has no weight any more.
    stages = (StageConfig(4, (("b", 0.0),)),)
    with pytest.raises(UserError, match=r"lasts for 12 batches, .*: a had max_epochs and no other"):
        planned(50, a=(100, None, 1.0), b=(200, None, None), stages=stages)
    with pytest.raises(UserError, match=r"'a': max_epochs=0.05 of 100 records is less than one"):
        planned(a=(100, None, 0.05), b=(200, None, None))


def test_data_of_other_sources_are_refused():
    def plan(config=MixtureConfig(), **records):
        sources = [SourceConfig("a"), SourceConfig("b")]
        return plan_mixture(sources, records, config, batch_size=10, num_steps=5)

    with pytest.raises(UserError, match="data hold the sources a, c and the configuration a, b"):
        plan(a=100, c=100)
    with pytest.raises(UserError, match="hold the sources a and the configuration a, b: prepare"):
        plan(MixtureConfig(stages=(StageConfig(1, (("b", 1.0),)),)), a=100)


def problems(weights=None, **values):
    return list(mixture_problems(MixtureConfig(**values), weights or {"a": None, "b": 1.0}))


def test_mixtures_that_cannot_be_are_named():
    assert problems(temperature=2.0, size_limit=10) == []
    assert "no effect without mixture.temperature" in problems(size_limit=10)[0]

    def stage_problems(*stages):
        return problems(stages=tuple(StageConfig(step, tuple(w.items())) for step, w in stages))

    assert stage_problems((0, {"a": 0.0}), (9, {"a": 2.0, "b": 0.0})) == []
    assert "no source is named 'c'; they are a, b" in stage_problems((0, {"c": 1.0}))[0]
    assert "must be above that of the stage before, 5" in stage_problems((5, {}), (5, {}))[0]
    assert "from_step=-1 must be 0 or more" in stage_problems((-1, {}))[0]
    assert "the weight of 'a' is -1.0" in stage_problems((1, {"a": -1.0}))[0]
    assert "stages.1 leaves no source" in stage_problems((1, {"a": 0.0}), (2, {"b": 0.0}))[0]
    twice = MixtureConfig(stages=(StageConfig(1, (("a", 1.0), ("a", 2.0))),))
    assert "names 'a' twice" in next(mixture_problems(twice, {"a": None}))
