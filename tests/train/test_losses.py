import jax
import jax.numpy as jnp
import numpy as np
import pytest
from contrast_oracle import contrast

from jina_jax.train.log_sums import LOWEST, Marks, Spread, log_sums
from jina_jax.train.losses import ALL_TERMS, Terms, _check_sizes, contrastive_loss
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
ONE_WAY = Terms(positive=0.0)
NAMES = {
    "identity_BT": "identity", "has_negative_BN": "has_negative", "weight_B": "weight",
    "teacher_BS": "teacher",
}  # fmt: skip


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


def measure(arrays, temperature, spread, *, terms=ALL_TERMS, **options):
    def loss(arrays, temperature):
        found = contrastive_loss(
            *arrays, temperature=temperature, spread=spread, terms=terms, **options
        )
        return found.loss, found

    compiled = jax.jit(jax.value_and_grad(loss, argnums=(0, 1), has_aux=True))
    (_, found), (of_arrays, of_temperature) = compiled(arrays, jnp.float32(temperature))
    return found, (*of_arrays, of_temperature)


def assert_equals_oracle(
    arrays, temperature, spread, *, terms=ALL_TERMS, tolerance=1e-6, **options
):
    found, gradients = measure(arrays, temperature, spread, terms=terms, **options)
    expected = contrast(
        *arrays, temperature=temperature, terms=terms,
        **{NAMES[k]: np.asarray(v) for k, v in options.items()},
    )  # fmt: skip
    for name, value in found._asdict().items():
        # Of a loss far below its logits of up to 1 / temperature, 1e-6 nats.
        if value is not None:
            wanted = pytest.approx(getattr(expected, name), rel=tolerance, abs=tolerance)
            assert float(value) == wanted, name
    wanted = [x for x in expected.gradients if np.size(x)]
    assert len(gradients) == len(wanted)
    for found, exact in zip(gradients[:-1], wanted[:-1]):
        assert np.linalg.norm(found - exact) <= tolerance * np.linalg.norm(exact)
    # The gradient of the temperature is a small difference of large sums.
    assert gradients[-1] == pytest.approx(wanted[-1], rel=10 * tolerance)


def test_two_orthogonal_pairs_by_hand():
    q = jnp.eye(2, dtype=jnp.float32)
    both = contrastive_loss(q, q, temperature=1.0, spread=ONE)
    assert both.loss == pytest.approx(2 * 0.31326169, abs=1e-6)
    assert both.query_loss == pytest.approx(np.log(1 + np.exp(-1)), abs=1e-6)
    assert (both.positive_cosine, both.in_batch_cosine, both.masked_share) == (1, 0, 0)
    assert both.margin_loss is None and both.negative_cosine is None
    one_way = contrastive_loss(q, q, temperature=1.0, spread=ONE, terms=ONE_WAY)
    assert one_way.loss == both.query_loss
    assert one_way.positive_loss is None


def test_triplets_by_hand():
    # Denominators 2e + 2 of cosines 1, 1, 0, 0; the negatives are no queries, so back it is e + 1.
    q = jnp.eye(2, dtype=jnp.float32)
    found = contrastive_loss(q, q, q[:, None], temperature=1.0, spread=ONE)
    assert found.query_loss == pytest.approx(np.log(2 + 2 / np.e), abs=1e-6)
    assert found.positive_loss == pytest.approx(np.log(1 + 1 / np.e), abs=1e-6)
    # A negative that is the positive misses the margin by ε.
    assert found.margin_loss == pytest.approx(0.05, abs=1e-7)
    assert found.loss == pytest.approx(np.log(2 + 2 / np.e) + np.log(1 + 1 / np.e) + 0.05, abs=1e-6)
    assert found.negative_cosine == 1.0


def test_margin_by_hand():
    # Cosines of positives 0.6, 1 and of negatives 0.8, 0.94, 0.6, 0: hinges 0.25, 0.39, 0, 0.
    q = jnp.eye(3, dtype=jnp.float32)[:2]
    p = jnp.array([[0.6, 0.8, 0], [0, 1, 0]], jnp.float32)
    n = jnp.array([[[0.8, 0, 0.6], [0.94, 0, 0.34117444]], [[0.8, 0.6, 0], [1, 0, 0]]], jnp.float32)
    found = contrastive_loss(q, p, n, temperature=1.0, spread=ONE)
    assert found.margin_loss == pytest.approx((0.25 + 0.39) / 4, abs=1e-6)
    assert found.negative_cosine == pytest.approx((0.8 + 0.94 + 0.6) / 4, abs=1e-6)
    only = contrastive_loss(
        q, p, n, temperature=1.0, spread=ONE, terms=Terms(0.0, 0.0, 2.0, 0.3),
        has_negative_BN=jnp.array([[True, False], [True, True]]),
    )  # fmt: skip
    assert only.loss == pytest.approx(2 * 0.5 / 3, abs=1e-6)
    assert only.negative_cosine == pytest.approx(1.4 / 3, abs=1e-6)


def test_both_directions_count():
    # q→p alone would not see that two queries are one point.
    q = jnp.array([[1.0, 0.0], [1.0, 0.0]], jnp.float32)
    p = jnp.eye(2, dtype=jnp.float32)
    forward = contrastive_loss(q, p, temperature=1.0, spread=ONE, terms=ONE_WAY).loss
    backward = contrastive_loss(p, q, temperature=1.0, spread=ONE, terms=ONE_WAY).loss
    assert backward == pytest.approx(np.log(2), abs=1e-6)
    both = contrastive_loss(q, p, temperature=1.0, spread=ONE).loss
    assert both == pytest.approx(float(forward + backward), abs=1e-6)


# A tile of 4 MiB holds the matrix; one of 4,000 or 160 bytes has 31 or 6 rows, and a remainder.
@pytest.mark.parametrize("tile_bytes", [2**22, 4000, 160])
@pytest.mark.parametrize(("pairs", "dimension"), [(17, 64), (129, 512), (1000, 64)])
@pytest.mark.parametrize("terms", [Terms(), ONE_WAY])
def test_equals_the_whole_matrix(tile_bytes, pairs, dimension, terms):
    rng = np.random.default_rng(pairs)
    arrays = unit(rng, pairs, dimension), unit(rng, pairs, dimension)
    assert_equals_oracle(arrays, 0.05, Spread(mesh(), tile_bytes=tile_bytes), terms=terms)


def triplets(rng, size, negatives):
    """Embeddings and options that use all: masks, missing negatives, unequal weights."""
    q = unit(rng, size, 64)
    n = jnp.stack([near(q, rng, 3.0) for _ in range(negatives)], axis=1)
    identity = identities(rng, size, 2 + negatives)
    # Some negatives are their own query's positive, and some that of the pair before.
    identity = identity.at[:20, 2].set(identity[:20, 1])
    identity = identity.at[21:30, 2].set(identity[20:29, 1])
    return (q, near(q, rng, 3.0), n), {
        "identity_BT": identity,
        "has_negative_BN": jnp.asarray(rng.random((size, negatives)) < 0.7),
        "weight_B": jnp.asarray(rng.uniform(0, 2, size), jnp.float32),
    }


@pytest.mark.parametrize("gather", ["all_gather", "ring"])
@pytest.mark.parametrize("which", ["1", "8", "2x4", "2x2x2"])
@pytest.mark.parametrize("tile_bytes", [2**22, 200])
def test_triplets_equal_the_whole_matrix(gather, which, tile_bytes):
    arrays, options = triplets(np.random.default_rng(3), 104, 2)
    spread = Spread(mesh(which), gather, tile_bytes)
    for terms in (Terms(), Terms(0.5, 0.0, 3.0, 0.2)):
        assert_equals_oracle(arrays, 0.05, spread, terms=terms, **options)


@pytest.mark.parametrize(
    "left_out", [(), ("identity_BT",), ("has_negative_BN",), ("identity_BT", "has_negative_BN")]
)
def test_triplets_without_options_equal_the_whole_matrix(left_out):
    arrays, options = triplets(np.random.default_rng(4), 40, 3)
    for name in left_out:
        del options[name]
    spread = Spread(mesh("8"), "ring", 400)
    assert_equals_oracle(arrays, 0.05, spread, terms=Terms(margin=5.0), **options)


@pytest.mark.parametrize("terms", [Terms(1, 0, 0), Terms(0, 1, 0), Terms(0, 0, 1)])
def test_each_term_alone_equals_the_whole_matrix(terms):
    arrays, options = triplets(np.random.default_rng(5), 40, 1)
    expected = contrast(
        *arrays, temperature=0.05, terms=terms, identity=np.asarray(options["identity_BT"])
    )
    found, gradients = measure(arrays, 0.05, ONE, terms=terms, identity_BT=options["identity_BT"])
    assert float(found.loss) == pytest.approx(expected.loss, rel=1e-6, abs=1e-6)
    for one, exact in zip(gradients[:3], expected.gradients):
        assert np.linalg.norm(one - exact) <= 1e-6 * np.linalg.norm(exact)


def test_what_stands_for_a_missing_negative_has_no_influence():
    arrays, options = triplets(np.random.default_rng(6), 16, 2)
    other = unit(np.random.default_rng(7), 16, 2, 64)
    has = options["has_negative_BN"]
    moved = *arrays[:2], jnp.where(has[..., None], arrays[2], other)
    one, gradients = measure(arrays, 0.05, ONE, **options)
    two, _ = measure(moved, 0.05, ONE, **options)
    assert one == two
    assert not np.any(gradients[2][~has])
    assert np.any(gradients[2][has], axis=-1).mean() > 0.9


def test_masks_change_the_loss_by_what_they_leave_out():
    rng = np.random.default_rng(1)
    q, p = unit(rng, 6, 4), unit(rng, 6, 4)
    # Pairs 0 and 3 share a positive, 1 and 2 a query, and query 5 is the text of positive 4.
    identity = jnp.array([[0, 6], [1, 7], [1, 8], [3, 6], [4, 9], [9, 11]], jnp.int32)
    assert_equals_oracle((q, p), 0.05, ONE, identity_BT=identity)
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
    gradients = measure((q, p), 0.05, ONE, identity_BT=identity)[1]
    assert max(np.abs(x).max() for x in gradients) < 1e-5


@pytest.mark.parametrize("which", ["1", "8"])
@pytest.mark.parametrize("identity", [None, np.arange(32).reshape(8, 4)])
def test_triplets_without_any_negative_are_pairs(which, identity):
    rng = np.random.default_rng(7)
    q, p, n = unit(rng, 8, 4), unit(rng, 8, 4), unit(rng, 8, 2, 4)
    spread = Spread(mesh(which), tile_bytes=40)
    numbers = None if identity is None else jnp.asarray(identity, jnp.int32)
    of_pairs = None if numbers is None else numbers[:, :2]
    without = measure((q, p), 0.05, spread, identity_BT=of_pairs)
    masked = measure(
        (q, p, n), 0.05, spread, identity_BT=numbers, has_negative_BN=jnp.zeros((8, 2), bool)
    )
    assert masked[0].loss == pytest.approx(float(without[0].loss), abs=1e-6)
    assert (masked[0].margin_loss, masked[0].negative_cosine, masked[0].masked_share) == (0, 0, 0)
    for found, expected in zip(masked[1][:2], without[1][:2]):
        np.testing.assert_allclose(found, expected, atol=2e-6)
    assert not np.any(masked[1][2])


@pytest.mark.parametrize("temperature", [1.0, 0.01, 0.001])
def test_any_temperature_and_any_cosine(temperature):
    # Logits of -1000 to 1000: an exponential without a maximum would be 0 or infinite.
    rng = np.random.default_rng(5)
    q = unit(rng, 40, 64)
    p = jnp.concatenate([near(q[:20], rng, 0.1), near(-q[20:], rng, 0.1)])
    assert_equals_oracle((q, p), temperature, Spread(mesh(), tile_bytes=400), tolerance=5e-6)


def test_vectors_need_not_be_exactly_of_unit_length():
    rng = np.random.default_rng(6)
    q = unit(rng, 40, 64)
    p = unit(rng, 40, 64) * jnp.asarray(rng.uniform(0.99, 1.01, (40, 1)), jnp.float32)
    assert_equals_oracle((q, p), 0.05, ONE)


@pytest.mark.parametrize("gather", ["all_gather", "ring"])
@pytest.mark.parametrize("which", ["8", "2x4", "2x2x2"])
def test_devices_do_not_change_values(gather, which):
    rng = np.random.default_rng(4)
    q = unit(rng, 104, 64)
    arrays = q, near(q, rng, 2.0)
    options = {"identity_BT": identities(rng, 104, 2)}
    one = measure(arrays, 0.05, ONE, **options)
    many = measure(arrays, 0.05, Spread(mesh(which), gather, 300), **options)
    assert float(many[0].loss) == pytest.approx(float(one[0].loss), abs=2e-6)
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
    def accuracy(*arrays):
        return contrastive_loss(*arrays, temperature=0.05, spread=ONE).accuracy

    q = jnp.eye(3, dtype=jnp.float32)
    assert accuracy(q, q[jnp.array([0, 2, 1])]) == pytest.approx(1 / 3, abs=1e-6)
    assert accuracy(q, q) == 1.0
    # A hard negative at cosine 0.8 beats a positive at 0.6.
    p = jnp.array([[0.6, 0.8, 0], [0, 1, 0], [0, 0, 1]], jnp.float32)
    hard = jnp.array([[0.0, 0.0, 1.0], [0.8, 0.0, 0.6], [0.0, 0.0, 1.0]], jnp.float32)
    assert accuracy(q, p) == 1.0
    assert accuracy(q, p, hard[:, None]) == pytest.approx(2 / 3)


def test_masked_share_by_hand():
    # Pairs 0 and 1 share a positive; the hard negative of pair 2 is the query of pair 0, and that
    # of pair 1 is not there. Of 3 · 2 positives and 3 · 2 negatives, 3 are masked.
    rng = np.random.default_rng(0)
    identity = jnp.array([[0, 1, 2], [3, 1, 4], [5, 6, 0]], jnp.int32)
    found = contrastive_loss(
        unit(rng, 3, 4), unit(rng, 3, 4), unit(rng, 3, 1, 4), temperature=0.05, spread=ONE,
        identity_BT=identity, has_negative_BN=jnp.array([[True], [False], [True]]),
    )  # fmt: skip
    assert found.masked_share == pytest.approx(3 / 12, abs=1e-7)


def test_in_batch_cosine_leaves_out_known_matches():
    # Pairs 0 and 1 share a text: of the cosines with others, those of queries 0 and 1 with each
    # other's positives do not count.
    q = jnp.array([[1, 0, 0], [0, 1, 0], [0, 1, 0]], jnp.float32)
    p = jnp.array([[0.8, 0.6, 0], [0.6, 0.8, 0], [0, 0, 1]], jnp.float32)
    identity = jnp.array([[0, 1], [2, 1], [3, 4]], jnp.int32)

    def cosine(q, identity_BT):
        return contrastive_loss(
            q, p, temperature=0.05, spread=ONE, identity_BT=identity_BT
        ).in_batch_cosine

    assert cosine(q, None) == pytest.approx((0.6 + 0 + 0.6 + 0 + 0.6 + 0.8) / 6, abs=1e-6)
    assert cosine(q, identity) == pytest.approx((0 + 0 + 0.6 + 0.8) / 4, abs=1e-6)
    assert cosine(q, jnp.zeros((3, 2), jnp.int32)) == pytest.approx(0, abs=1e-6)
    assert not jax.grad(cosine)(q, None).any()


def test_sizes_that_do_not_fit_are_refused():
    rng = np.random.default_rng(9)
    q, identity = unit(rng, 16, 4), jnp.zeros((16, 3), jnp.int32)
    # Behind the annotations, which tests check and users' runs do not.
    with pytest.raises(ValueError, match="8 positives for 16 queries"):
        _check_sizes(q, q[:8], None, None, 1)
    with pytest.raises(ValueError, match="8 rows of hard negatives for 16 queries"):
        _check_sizes(q, q, q[:8, None], None, 1)
    with pytest.raises(ValueError, match="12 pairs do not divide by 8 devices"):
        contrastive_loss(q[:12], q[:12], temperature=0.1, spread=Spread(mesh("8")))
    with pytest.raises(ValueError, match=r"shape \(16, 3\) for 16 records of 2 texts"):
        contrastive_loss(q, q, temperature=0.1, spread=ONE, identity_BT=identity)
