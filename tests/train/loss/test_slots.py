import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jina_jax.train.loss.log_sums import LossSharding
from jina_jax.train.loss.slots import take_slots


@pytest.mark.parametrize("gather", ["all_gather", "ring"])
@pytest.mark.parametrize("shape", [(1,), (8,), (2, 4)])
def test_takes_what_indexing_takes_with_its_gradient(gather, shape):
    rng = np.random.default_rng(0)
    mesh = jax.make_mesh(
        shape, ("a", "b")[: len(shape)], devices=jax.devices()[: int(np.prod(shape))],
        axis_types=(jax.sharding.AxisType.Auto,) * len(shape),
    )  # fmt: skip
    z = jnp.asarray(rng.standard_normal((40, 3)), jnp.float32)
    # The first and last slot of a device, one that is taken twice, and many that are not.
    slots = jnp.asarray(rng.choice(40, (8, 2), replace=False), jnp.int32)
    slots = slots.at[0].set(jnp.array([0, 39])).at[1].set(jnp.array([4, 5])).at[2, 0].set(4)
    # And texts that are not there.
    slots = slots.at[5, 1].set(-1).at[6].set(-1)
    weight = jnp.asarray(rng.standard_normal((8, 2, 3)), jnp.float32)

    def taken(z):
        found = take_slots(z, slots, LossSharding(mesh, gather))
        return (weight * found).sum(), found

    (_, found), gradient = jax.jit(jax.value_and_grad(taken, has_aux=True))(z)
    there = np.asarray(slots) >= 0
    np.testing.assert_array_equal(found, np.where(there[..., None], z[slots], 0))
    expected = np.zeros((40, 3))
    np.add.at(expected, np.asarray(slots)[there], np.asarray(weight)[there])
    np.testing.assert_allclose(gradient, expected, atol=1e-6)
