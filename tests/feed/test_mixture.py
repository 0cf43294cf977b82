import numpy as np
import pytest

from jina_jax.feed.mixture import interleave


def test_hand_worked_order():
    # Shares 2/3 and 1/3: due at .75, 2.25, 3.75, 5.25 and at 1.5, 4.5.
    source, ordinal = interleave([2.0, 1.0], 6)
    assert source.tolist() == [0, 1, 0, 0, 1, 0]
    assert ordinal.tolist() == [0, 0, 1, 2, 1, 3]


@pytest.mark.parametrize(
    "weights", [[1.0], [3.0, 1.0], [0.7, 0.2, 0.1], [5.0, 5.0, 1.0, 1e-3], [1.0] * 9]
)
def test_counts_follow_the_weights_after_every_batch(weights):
    source, ordinal = interleave(weights, 1000)
    share = np.array(weights) / np.sum(weights)
    counts = np.cumsum(source[:, None] == np.arange(len(weights))[None], axis=0)
    wanted = np.arange(1, 1001)[:, None] * share[None]
    assert np.abs(counts - wanted).max() <= max(1, len(weights) - 1)
    for s in range(len(weights)):
        assert ordinal[source == s].tolist() == list(range(counts[-1, s]))


def test_a_longer_run_begins_like_a_shorter_one():
    for part, whole in zip(interleave([0.6, 0.3, 0.1], 50), interleave([0.6, 0.3, 0.1], 5000)):
        assert np.array_equal(part, whole[:50])
