import jax
import jax.numpy as jnp
import numpy as np
import pytest
from contrast_oracle import contrast

from jina_jax.train.log_sums import LOWEST, Marks, Spread, log_sums
from jina_jax.train.losses import _contrast, info_nce, pair_loss
from jina_jax.train.tiles import tile_shape

MESHES = {
    "1": ((1,), ("data",)),
    "8": ((8,), ("data",)),
    "2x4": ((2, 4), ("data", "fsdp")),
    "2x2x2": ((2, 2, 2), ("data", "fsdp", "tensor")),
}


def mesh(name="1"):
    shape, axes = MESHES[name]
    devices = jax.devices()[: int(np.prod(shape))]
    return jax.make_mesh(
        shape, axes, devices=devices, axis_types=(jax.sharding.AxisType.Auto,) * len(axes)
    )


ONE = Spread(mesh())


def unit(rng, *shape):
    x = rng.standard_normal(shape)
    return jnp.asarray(x / np.linalg.norm(x, axis=-1, keepdims=True), jnp.float32)


def near(q, rng, noise):
    """Positives that are nearer to their queries than chance."""
    p = np.asarray(q) + noise * np.asarray(unit(rng, *q.shape))
    return jnp.asarray(p / np.linalg.norm(p, axis=-1, keepdims=True), jnp.float32)


def identities(rng, size, texts):
    """Numbers of texts of which about half occur twice."""
    return jnp.asarray(rng.integers(0, size * texts, (size, texts)), jnp.int32)


def measure(arrays, temperature, spread, *, both_ways, **options):
    function = pair_loss if both_ways else info_nce

    def loss(arrays, temperature):
        found = function(*arrays, temperature=temperature, spread=spread, **options)
        return found.loss, found.accuracy

    compiled = jax.jit(jax.value_and_grad(loss, argnums=(0, 1), has_aux=True))
    (value, accuracy), (of_arrays, of_temperature) = compiled(arrays, jnp.float32(temperature))
    return value, (*of_arrays, of_temperature), accuracy


def assert_equals_oracle(arrays, temperature, spread, *, both_ways, tolerance=1e-6, **options):
    value, gradients, accuracy = measure(
        arrays, temperature, spread, both_ways=both_ways, **options
    )
    names = {"identity_BT": "identity", "negative_identity_NU": "negative_identity"}
    expected, wanted, rate = contrast(
        *arrays, temperature=temperature, both_ways=both_ways,
        **{names.get(k, "weight"): np.asarray(v) for k, v in options.items()},
    )  # fmt: skip
    # Of a loss far below its logits of up to 1 / temperature, 1e-6 nats.
    assert value == pytest.approx(expected, rel=tolerance, abs=tolerance)
    assert accuracy == pytest.approx(rate, abs=1e-6)
    wanted = [x for x in wanted if np.size(x)]
    assert len(gradients) == len(wanted)
    for found, exact in zip(gradients[:-1], wanted[:-1]):
        assert np.linalg.norm(found - exact) <= tolerance * np.linalg.norm(exact)
    # The gradient of the temperature is a small difference of large sums.
    assert gradients[-1] == pytest.approx(wanted[-1], rel=10 * tolerance)


def test_two_orthogonal_pairs_by_hand():
    q = jnp.eye(2, dtype=jnp.float32)
    one_way = info_nce(q, q, temperature=1.0, spread=ONE)
    assert one_way.loss == pytest.approx(np.log(1 + np.exp(-1)), abs=1e-6)
    both_ways = pair_loss(q, q, temperature=1.0, spread=ONE)
    assert both_ways.loss == pytest.approx(2 * 0.31326169, abs=1e-6)


def test_hard_negatives_by_hand():
    # Denominators 2e + 2 of cosines 1, 1, 0, 0; the negatives are no queries, so back it is e + 1.
    q = jnp.eye(2, dtype=jnp.float32)
    loss = pair_loss(q, q, q, temperature=1.0, spread=ONE).loss
    assert loss == pytest.approx(np.log(2 + 2 / np.e) + np.log(1 + 1 / np.e), abs=1e-6)
    assert info_nce(q, q, q, temperature=1.0, spread=ONE).loss == pytest.approx(
        np.log(2 + 2 / np.e), abs=1e-6
    )


def test_both_directions_count():
    # q→p alone would not see that two queries are one point.
    q = jnp.array([[1.0, 0.0], [1.0, 0.0]], jnp.float32)
    p = jnp.eye(2, dtype=jnp.float32)
    forward = info_nce(q, p, temperature=1.0, spread=ONE).loss
    backward = info_nce(p, q, temperature=1.0, spread=ONE).loss
    assert backward == pytest.approx(np.log(2), abs=1e-6)
    both = pair_loss(q, p, temperature=1.0, spread=ONE).loss
    assert both == pytest.approx(float(forward + backward), abs=1e-6)


# A tile of 4 MiB holds the matrix; one of 4,000 or 160 bytes has 31 or 6 rows, and a remainder.
@pytest.mark.parametrize("tile_bytes", [2**22, 4000, 160])
@pytest.mark.parametrize(("pairs", "dimension"), [(17, 64), (129, 512), (1000, 64)])
@pytest.mark.parametrize("both_ways", [True, False])
def test_equals_the_whole_matrix(tile_bytes, pairs, dimension, both_ways):
    rng = np.random.default_rng(pairs)
    arrays = unit(rng, pairs, dimension), unit(rng, pairs, dimension)
    assert_equals_oracle(arrays, 0.05, Spread(mesh(), tile_bytes=tile_bytes), both_ways=both_ways)


@pytest.mark.parametrize("gather", ["all_gather", "ring"])
@pytest.mark.parametrize("which", ["8", "2x4", "2x2x2"])
@pytest.mark.parametrize("tile_bytes", [2**22, 200])
def test_masks_and_hard_negatives_equal_the_whole_matrix(gather, which, tile_bytes):
    rng = np.random.default_rng(3)
    q = unit(rng, 104, 64)
    arrays = q, near(q, rng, 2.0), near(jnp.concatenate([q, q]), rng, 3.0)
    identity = identities(rng, 104, 2)
    # Some negatives are the positive of the pair of their own number: no number exempts them.
    negative_identity = identities(rng, 208, 1).at[:20, 0].set(identity[:20, 1])
    options = {
        "identity_BT": identity,
        "negative_identity_NU": negative_identity,
        "weight_B": jnp.asarray(rng.uniform(0, 2, 104), jnp.float32),
    }
    spread = Spread(mesh(which), gather, tile_bytes)
    for both_ways in (True, False):
        assert_equals_oracle(arrays, 0.05, spread, both_ways=both_ways, **options)


def test_masks_change_the_loss_by_what_they_leave_out():
    rng = np.random.default_rng(1)
    q, p = unit(rng, 6, 4), unit(rng, 6, 4)
    # Pairs 0 and 3 share a positive, 1 and 2 a query, and query 5 is the text of positive 4.
    identity = jnp.array([[0, 6], [1, 7], [1, 8], [3, 6], [4, 9], [9, 11]], jnp.int32)
    assert_equals_oracle((q, p), 0.05, ONE, both_ways=True, identity_BT=identity)
    for i, j, shared in ((0, 3, True), (2, 1, True), (5, 4, True), (0, 1, False), (4, 3, False)):
        moved = p.at[j].set(-p[j])
        rows = [
            log_sums(q, x, jnp.float32(20), marks, marks, False, ONE).row_B[i]
            for x in (p, moved)
            for marks in [Marks(jnp.arange(6), identity)]
        ]
        assert (rows[0] == rows[1]) == shared, (i, j)


def test_masked_negatives_get_no_gradient():
    rng = np.random.default_rng(2)
    q, p = unit(rng, 2, 4), unit(rng, 2, 4)
    identity = jnp.array([[0, 1], [0, 1]], jnp.int32)
    gradients = measure((q, p), 0.05, ONE, both_ways=True, identity_BT=identity)[1]
    assert max(np.abs(x).max() for x in gradients) < 1e-5


@pytest.mark.parametrize("which", ["1", "8"])
def test_a_row_whose_negatives_are_all_masked_keeps_its_positives(which):
    rng = np.random.default_rng(7)
    q, p, n = unit(rng, 8, 4), unit(rng, 8, 4), unit(rng, 16, 4)
    identity = jnp.arange(16, dtype=jnp.int32).reshape(8, 2)
    spread = Spread(mesh(which), tile_bytes=40)
    without = measure((q, p), 0.05, spread, both_ways=True, identity_BT=identity)
    everything = jnp.tile(identity.reshape(1, 16), (16, 1))
    masked = measure(
        (q, p, n), 0.05, spread, both_ways=True,
        identity_BT=identity, negative_identity_NU=everything,
    )  # fmt: skip
    assert masked[0] == pytest.approx(float(without[0]), abs=1e-6)
    for found, expected in zip(masked[1][:2], without[1][:2]):
        np.testing.assert_allclose(found, expected, atol=2e-6)
    assert not np.any(masked[1][2])


@pytest.mark.parametrize("temperature", [1.0, 0.01, 0.001])
def test_any_temperature_and_any_cosine(temperature):
    # Logits of -1000 to 1000: an exponential without a maximum would be 0 or infinite.
    rng = np.random.default_rng(5)
    q = unit(rng, 40, 64)
    p = jnp.concatenate([near(q[:20], rng, 0.1), near(-q[20:], rng, 0.1)])
    assert_equals_oracle(
        (q, p), temperature, Spread(mesh(), tile_bytes=400), both_ways=True, tolerance=5e-6
    )


def test_vectors_need_not_be_exactly_of_unit_length():
    rng = np.random.default_rng(6)
    q = unit(rng, 40, 64)
    p = unit(rng, 40, 64) * jnp.asarray(rng.uniform(0.99, 1.01, (40, 1)), jnp.float32)
    assert_equals_oracle((q, p), 0.05, ONE, both_ways=True)


@pytest.mark.parametrize("gather", ["all_gather", "ring"])
@pytest.mark.parametrize("which", ["8", "2x4", "2x2x2"])
def test_devices_do_not_change_values(gather, which):
    rng = np.random.default_rng(4)
    q = unit(rng, 104, 64)
    arrays = q, near(q, rng, 2.0)
    options = {"both_ways": True, "identity_BT": identities(rng, 104, 2)}
    one = measure(arrays, 0.05, ONE, **options)
    many = measure(arrays, 0.05, Spread(mesh(which), gather, 300), **options)
    assert float(many[0]) == pytest.approx(float(one[0]), abs=2e-6)
    for found, expected in zip(many[1][:2], one[1][:2]):
        np.testing.assert_allclose(found, expected, atol=2e-6)


def test_sums_of_keys_are_not_computed_unless_asked_for():
    rng = np.random.default_rng(8)
    q, k = unit(rng, 8, 4), unit(rng, 16, 4)
    sums = log_sums(q, k, jnp.float32(20), None, None, False, ONE)
    np.testing.assert_allclose(sums.key_N, np.float32(LOWEST))
    np.testing.assert_allclose(sums.row_max_B, (20 * q @ k.T).max(1), rtol=1e-6)


@pytest.mark.parametrize(
    ("rows", "keys", "tile_bytes", "shape"),
    [
        (10, 20, 2**20, (10, 20)),
        (17, 17, 400, (9, 9)),  # edge 10: two parts each
        (3, 1000, 400, (3, 33)),  # 33 fit: 31 parts
        (1000, 3, 400, (33, 3)),
        (16384, 16384, 2**24, (2048, 2048)),
        (1000, 1000, 250_000 * 4, (384, 384)),  # 500 fit: three parts of a multiple of 128
        (5, 5, 1, (1, 1)),
    ],
)
def test_tile_shape(rows, keys, tile_bytes, shape):
    assert tile_shape(rows, keys, tile_bytes) == shape


def test_accuracy_by_hand():
    q = jnp.eye(3, dtype=jnp.float32)
    p = q[jnp.array([0, 2, 1])]
    assert info_nce(q, p, temperature=0.05, spread=ONE).accuracy == pytest.approx(1 / 3, abs=1e-6)
    assert pair_loss(q, q, temperature=0.05, spread=ONE).accuracy == 1.0
    # A hard negative at cosine 0.8 beats a positive at 0.6.
    p = jnp.array([[0.6, 0.8, 0], [0, 1, 0], [0, 0, 1]], jnp.float32)
    hard = jnp.array([[0.8, 0.0, 0.6]], jnp.float32)
    assert info_nce(q, p, temperature=0.05, spread=ONE).accuracy == 1.0
    assert info_nce(q, p, hard, temperature=0.05, spread=ONE).accuracy == pytest.approx(2 / 3)


def test_sizes_that_do_not_fit_are_refused():
    rng = np.random.default_rng(9)
    q = unit(rng, 16, 4)
    # Behind the annotations, which tests check and users' runs do not.
    with pytest.raises(ValueError, match="8 positives for 16 queries"):
        _contrast(q, q[:8], None, jnp.float32(10), ONE, None, None, None, both_ways=False)
    eight = Spread(mesh("8"))
    with pytest.raises(ValueError, match="12 pairs do not divide by 8 devices"):
        info_nce(q[:12], q[:12], temperature=0.1, spread=eight)
    with pytest.raises(ValueError, match="9 hard negatives do not divide by 8 devices"):
        pair_loss(q, q, q[:9], temperature=0.1, spread=eight)
