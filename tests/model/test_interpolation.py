import numpy as np
import pytest

from jina_jax.model.interpolation import _angle, blend, interpolate


def slerp(a, b, t):
    """Straight from the formula, with the angle by its cosine."""
    theta = np.arccos(np.vdot(a, b) / np.linalg.norm(a) / np.linalg.norm(b))
    return (np.sin((1 - t) * theta) * a + np.sin(t * theta) * b) / np.sin(theta)


def float32(*values):
    return np.array(values, np.float32)


@pytest.mark.parametrize(
    ("a", "b", "share", "mean", "arc"),
    [
        ((1, 0), (0, 1), 0.5, (0.5, 0.5), (np.sqrt(0.5), np.sqrt(0.5))),
        ((2, 0), (0, 1), 1 / 3, (4 / 3, 1 / 3), (np.sqrt(3), 0.5)),
        ((1, 2), (2, 4), 0.25, (1.25, 2.5), (1.25, 2.5)),
        ((0, 0), (2, 4), 0.25, (0.5, 1), (0.5, 1)),
        ((1, 2), (-1, -2), 0.25, (0.5, 1), (0.5, 1)),
    ],
)
def test_by_hand(a, b, share, mean, arc):
    for how, expected in (("mean", mean), ("slerp", arc)):
        found = interpolate(float32(*a), float32(*b), share, how)
        np.testing.assert_allclose(found, expected, atol=1e-7)
        assert found.dtype == np.float32


def test_slerp_is_its_formula_on_tensors_as_whole_vectors():
    chance = np.random.default_rng(0)
    for shape in ((7,), (5, 6), (2, 3, 4)):
        a, b = (chance.normal(size=shape).astype(np.float32) for _ in range(2))
        found = interpolate(a, b, 0.3, "slerp")
        np.testing.assert_allclose(
            found, slerp(a.astype(np.float64), b.astype(np.float64), 0.3), atol=1e-7
        )


@pytest.mark.parametrize("apart", [1e-3, 1e-6, 1e-8])
def test_small_angles_keep_their_digits(apart):
    """Of which the inverse of their cosine would know half."""
    a = np.zeros(400, np.float64)
    a[::2] = 1.0
    turned = np.cos(apart) * a + np.sin(apart) * np.roll(a, 1)
    assert _angle(a, turned) == pytest.approx(apart, rel=1e-7)
    found = interpolate(a.astype(np.float32), turned.astype(np.float32), 0.25, "slerp")
    expected = np.cos(apart / 4) * a + np.sin(apart / 4) * np.roll(a, 1)
    np.testing.assert_allclose(found, expected, atol=1e-7)


def test_several_are_blended_by_their_weights_one_after_another():
    chance = np.random.default_rng(1)
    models = [{"w": chance.normal(size=(4, 5)).astype(np.float32)} for _ in range(3)]
    one, two, three = (model["w"].astype(np.float64) for model in models)
    weights = [2.0, 1.0, 5.0]
    found = blend([lambda m=m: m for m in models], weights, "mean")["w"]
    np.testing.assert_allclose(found, (2 * one + two + 5 * three) / 8, atol=3e-7)
    found = blend([lambda m=m: m for m in models], weights, "slerp")["w"]
    np.testing.assert_allclose(found, slerp(slerp(one, two, 1 / 3), three, 5 / 8), atol=3e-7)
