import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jina_jax.train.loss.slots import take_slots


@pytest.mark.parametrize("groups", [1, 2, 4, 8])
@pytest.mark.parametrize("shape", [(1,), (4,), (2, 4)])
def test_takes_what_indexing_takes_with_its_gradient(groups, shape):
    rng = np.random.default_rng(0)
    mesh = jax.make_mesh(
        shape, ("a", "b")[: len(shape)], devices=jax.devices()[: int(np.prod(shape))],
        axis_types=(jax.sharding.AxisType.Auto,) * len(shape),
    )  # fmt: skip
    z = jnp.asarray(rng.standard_normal((80, 3)), jnp.float32)
    # Slots of the group of each text: the first and the last, one taken twice, many that are not.
    of_group = 80 // groups
    slots = np.stack([rng.choice(of_group, (16 // groups, 2), replace=of_group < 32) for _ in
                      range(groups)])  # fmt: skip
    slots[0, 0], slots[0, 1, 0] = (0, of_group - 1), 0
    slots[-1, -1, 1] = -1
    whole = np.where(slots >= 0, slots + of_group * np.arange(groups)[:, None, None], -1)
    whole, slots = whole.reshape(16, 2), jnp.asarray(slots.reshape(16, 2), jnp.int32)
    weight = jnp.asarray(rng.standard_normal((16, 2, 3)), jnp.float32)

    def taken(z):
        found = take_slots(z, slots, groups, mesh)
        return (weight * found).sum(), found

    (_, found), gradient = jax.jit(jax.value_and_grad(taken, has_aux=True))(z)
    there = whole >= 0
    np.testing.assert_array_equal(found, np.where(there[..., None], z[whole], 0))
    expected = np.zeros((80, 3))
    np.add.at(expected, whole[there], np.asarray(weight)[there])
    np.testing.assert_allclose(gradient, expected, atol=1e-6)


@pytest.mark.parametrize(
    ("groups", "devices", "travels"), [(8, 8, False), (16, 4, False), (2, 8, True)]
)
def test_nothing_travels_where_devices_have_whole_groups(groups, devices, travels):
    mesh = jax.make_mesh(
        (devices,), ("a",), devices=jax.devices()[:devices],
        axis_types=(jax.sharding.AxisType.Auto,),
    )  # fmt: skip
    split = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("a"))
    compute = jax.jit(
        jax.value_and_grad(lambda z, slots: (take_slots(z, slots, groups, mesh) ** 2).sum()),
        in_shardings=(split, split), out_shardings=(None, split),
    )  # fmt: skip
    shapes = jax.ShapeDtypeStruct((160, 3), "float32"), jax.ShapeDtypeStruct((32, 2), "int32")
    text = compute.lower(*shapes).compile().as_text()
    collectives = ("all-gather", "reduce-scatter", "all-to-all", "collective-permute")
    assert any(f"{name}(" in text for name in collectives) == travels
