import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sentence_transformers.quantization import quantize_embeddings

from jina_jax.config import MeshConfig
from jina_jax.devices.mesh import make_mesh, put, split_first_axis
from jina_jax.train.loss.quantised import straight_through

HAND = [[[0.6, -0.8, 0.0], [0.0, 0.0, 0.0], [-0.2, -0.1, -0.00078]]]


def test_by_hand():
    z = jnp.array(HAND, jnp.float32)
    # 0.6 / 0.8 · 127 = 95.25, -0.1 / 0.2 · 127 = -63.5 (to even), -0.00078 / 0.2 · 127 = -0.495.
    expected = np.array([[[95, -127, 0], [0, 0, 0], [-127, -64, 0]]], np.float64)
    expected[0, 0] /= np.sqrt(95**2 + 127**2)
    expected[0, 2] /= np.sqrt(127**2 + 64**2)
    np.testing.assert_allclose(straight_through(z, "int8"), expected, atol=1e-7)
    signs = np.array([[[1, -1, -1], [0, 0, 0], [-1, -1, -1]]]) / np.sqrt(3)
    np.testing.assert_allclose(straight_through(z, "binary"), signs, atol=1e-7)


@pytest.mark.parametrize("precision", ["int8", "binary"])
def test_the_gradient_passes_unchanged(precision):
    z = jnp.array(HAND, jnp.float32)
    weight = jax.random.normal(jax.random.key(0), z.shape)

    def loss(z):
        return jnp.sum(jnp.square(straight_through(z, precision)) * weight)

    expected = 2 * straight_through(z, precision) * weight
    np.testing.assert_array_equal(jax.jit(jax.grad(loss))(z), expected)
    assert np.any(np.asarray(expected) != 0)


def test_binary_is_what_sentence_transformers_packs():
    z = np.random.default_rng(0).normal(size=(2, 3, 24)).astype(np.float32)
    z[0, 0, :5] = 0.0
    bits = np.unpackbits(quantize_embeddings(z.reshape(6, 24), "ubinary"), axis=1)
    expected = (2.0 * bits - 1).reshape(2, 3, 24) / np.sqrt(24)
    np.testing.assert_allclose(straight_through(jnp.asarray(z), "binary"), expected, atol=1e-7)


@pytest.mark.parametrize("precision", ["int8", "binary"])
def test_no_vector_depends_on_another_nor_on_the_mesh(precision):
    z = np.random.default_rng(1).normal(size=(8, 2, 16)).astype(np.float32)
    z *= np.geomspace(1e-3, 1e3, 8, dtype=np.float32)[:, None, None]
    mesh = make_mesh(MeshConfig(data=4, fsdp=2))
    found = jax.jit(straight_through, static_argnums=1)(put(z, split_first_axis(mesh)), precision)
    alone = [straight_through(jnp.asarray(z[i : i + 1]), precision)[0] for i in range(8)]
    np.testing.assert_allclose(found, np.stack(alone), atol=1e-7)
    np.testing.assert_allclose(np.linalg.norm(found, axis=-1), 1, atol=1e-6)
    # The nearest of 255 levels is at most half a step away.
    if precision == "int8":
        code = np.asarray(found) / np.abs(found).max(-1, keepdims=True) * 127
        exact = z / np.abs(z).max(-1, keepdims=True) * 127
        assert np.abs(code - exact).max() < 0.501
