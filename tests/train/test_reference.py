"""The whole step beside a reference in torch and float64, which shares no code with it: every loss,
on every kind of mesh, however layers and rows are run.
"""

import copy
import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from jina_jax.config import FeedConfig, LossConfig, MeshConfig, RunConfig, T5Config, TrainConfig
from jina_jax.devices.mesh import check_divides, make_mesh, param_shardings, put, replicated
from jina_jax.feed.batch import pack_batch
from jina_jax.model.encoder import from_huggingface, to_huggingface
from jina_jax.shards.array_record import TokenisedRecords
from jina_jax.train.step import Learned, batch_loss, batch_shardings
from tests.marks import some_slow
from tests.model.torch_oracle import numpy_tensors, torch_encoder
from tests.train.loss.dense_reference import Reference

MODEL = T5Config(
    vocab_size=56, d_model=16, d_kv=4, d_ff=32, num_layers=2, num_heads=8, dropout_rate=0.0,
    feed_forward_proj="gated-gelu",
)  # fmt: skip
LIMIT = 10
FEED = FeedConfig(
    global_batch_size=16, query_tokens=LIMIT, positive_tokens=LIMIT, row_tokens=16,
    texts_per_row=4, rows_multiple=16,
)  # fmt: skip
LOSSES = {
    "pairs": (0, LossConfig(positive_weight=0.5)),
    "triplets": (2, LossConfig(margin_weight=3.0, margin=0.4)),
    "scored pairs": (0, LossConfig(distill_weight=2.0, distill_pair_scale=0.7)),
    "all": (
        2,
        LossConfig(
            query_weight=0.8, margin_weight=3.0, margin=0.4, distill_weight=2.0, gather="ring",
            matryoshka_dims=(4, 8), matryoshka_weights=(0.5, 2.0), learn_temperature=True,
            temperature=0.08, tile_bytes=300,
        ),
    ),
}  # fmt: skip
EVERY_PIECE = LossConfig(
    query_query_weight=0.7, positive_positive_weight=1.3, partition="joint", mask_by="guide",
    mask_margin=0.05, in_batch_hardness=3.0, hard_negative_hardness=5.0, distill_weight=2.0,
    distill="kl", spread_weight=3.0, spread_mean_weight=2.0, margin=0.4, gather="ring",
    matryoshka_dims=(4, 8), learn_temperature=True, temperature=0.08, tile_bytes=300,
)  # fmt: skip
LOSSES["every piece"] = (2, EVERY_PIECE)
MESHES = [(1, 1, 1), (8, 1, 1), (2, 2, 2), (1, 8, 1), (1, 1, 8)]
PLAIN, CHUNKED = TrainConfig(), TrainConfig(grad_cache_rows=16, scan_layers=True, remat="full")
EXECUTIONS = [
    PLAIN, TrainConfig(grad_cache_rows=16), TrainConfig(scan_layers=True, remat="full"), CHUNKED,
]  # fmt: skip


def draw(negatives):
    """Records with texts that occur twice, that are cut, that are cut to the same, or missing."""
    rng = np.random.default_rng(0)
    size, texts = FEED.global_batch_size, 2 + negatives
    found = [[rng.integers(2, 56, rng.integers(2, 14)) for _ in range(texts)] for _ in range(size)]
    long = rng.integers(2, 56, LIMIT + 3)
    found[0][1], found[1][1] = long, np.append(long, 7)
    found[3][0] = found[2][0]  # One query with two positives, ...
    found[5][1] = found[2][1]  # ... of which another pair has one.
    found[7][0] = found[6][1]
    if negatives:
        found[8][2], found[9][2], found[3][3] = found[8][1], found[1][1], found[2][1]
        for record, place in ((10, 2), (11, 2), (11, 3), (12, 3)):
            found[record][place] = np.zeros(0, int)
    for text in itertools.chain(*found):
        text[-1:] = 1
    flat = list(itertools.chain(*found))
    lengths = np.array([len(text) for text in flat]).reshape(size, texts)
    hashes = np.array([hash(tuple(text)) & (2**63 - 1) for text in flat], np.uint64)
    starts = (np.cumsum(lengths) - lengths.reshape(-1)).reshape(size, texts)
    scores = rng.uniform(-3, 3, (size, texts - 1)).astype(np.float32)
    scores[rng.random(scores.shape) < 0.2] = np.nan
    ids = np.concatenate(flat).astype(np.uint16)
    return TokenisedRecords(ids, starts, lengths, hashes.repeat(2).reshape(size, texts, 2), scores)


def seen_of(records, record, place):
    """Tokens of a text after the cut; none where there is no text."""
    text = records.text(record, place).tolist()
    return (*text[:-1][: LIMIT - 1], 1) if text else ()


def in_batches(name):
    """The same as batches hold it."""
    found = beyond_the_paper(name)
    if "label_B" in found:
        label_B = found.pop("label_B")
        found["label_B2"] = np.stack([label_B + 1, 0 * label_B], axis=1).astype(np.uint32)
    return found


def beyond_the_paper(name):
    """What batches hold for the losses beyond the paper's."""
    if name != "every piece":
        return {}
    rng, size = np.random.default_rng(1), FEED.global_batch_size
    guide = rng.integers(-40, 40, (size, 4, 6))
    guide[:, 1:] += guide[:, :1]
    return {
        "label_B": rng.integers(-1, 4, size).astype(np.int32),
        "guide_BTG": guide.astype(np.int8),
        "own_only": np.zeros((), bool),
    }


def every_piece(z, seen, scores, loss, temperature):
    """As `one_loss`, of all that there is."""
    numbers = {}
    identity = np.array(
        [[numbers.setdefault(t, len(numbers)) if t else -1 for t in texts] for texts in seen]
    )
    options = beyond_the_paper("every piece")
    guide = options["guide_BTG"].astype(np.float64)
    options["guide_BTG"] = guide / np.linalg.norm(guide, axis=-1, keepdims=True)
    options |= {
        "identity_BT": identity, "has_negative_BN": identity[:, 2:] >= 0,
        "teacher_BS": loss.distill_triplet_scale * scores.astype(np.float64),
    }  # fmt: skip
    return Reference((z[:, 0], z[:, 1], z[:, 2:]), temperature, loss, options).values["loss"]


def one_loss(z, seen, scores, loss, temperature):
    """Of embeddings [B, T, D] at unit length, written down from the definition."""
    size, texts = z.shape[:2]
    q, p, n = z[:, 0], z[:, 1], z[:, 2:]
    matches = {}
    for query, positive, *_ in seen:
        matches.setdefault(query, set()).add(positive)
    query_losses, positive_losses, hinges, distances = [], [], [], []
    to_keys = [[] for _ in range(size)]
    for b, (query, positive, *_) in enumerate(seen):
        known = matches[query] | {query, positive}
        own = q[b] @ p[b]
        keys = [own]
        for i, (other_query, other, *negatives) in enumerate(seen):
            if i != b and other not in known and other_query not in (query, positive):
                keys.append(q[b] @ p[i])
                to_keys[i].append(q[b] @ p[i])
            keys += [q[b] @ n[i, k] for k, t in enumerate(negatives) if t and t not in known]
        query_losses.append(torch.logsumexp(torch.stack(keys) / temperature, 0) - own / temperature)
        for k, negative in enumerate(seen[b][2:]):
            if not negative or negative in known:
                continue
            hinges.append(torch.relu(q[b] @ n[b, k] - own + loss.margin))
            wanted = loss.distill_triplet_scale * float(scores[b, 0] - scores[b, 1 + k])
            if not np.isnan(wanted):
                distances.append((own - q[b] @ n[b, k] - wanted) ** 2)
        if texts == 2 and not np.isnan(scores[b, 0]):
            distances.append((own - loss.distill_pair_scale * float(scores[b, 0])) ** 2)
    for b in range(size):
        own = q[b] @ p[b]
        of_all = torch.stack([own, *to_keys[b]])
        positive_losses.append(torch.logsumexp(of_all / temperature, 0) - own / temperature)
    total = loss.query_weight * torch.stack(query_losses).mean()
    total = total + loss.positive_weight * torch.stack(positive_losses).mean()
    if hinges:
        total = total + loss.margin_weight * torch.stack(hinges).mean()
    if loss.distill_weight:
        total = total + loss.distill_weight * torch.stack(distances).mean()
    return total


@functools.cache
def encoder():
    return torch_encoder(MODEL)


@functools.cache
def expected(name):
    """The records of a loss, and the reference's value and gradients."""
    negatives, loss = LOSSES[name]
    records = draw(negatives)
    size, texts = records.lengths_NS.shape
    seen = [[seen_of(records, b, t) for t in range(texts)] for b in range(size)]
    model = copy.deepcopy(encoder()).double()
    log_temperature = torch.tensor(
        float(np.log(np.float32(loss.temperature))), dtype=torch.float64, requires_grad=True
    )
    nothing = torch.zeros(MODEL.d_model, dtype=torch.float64)
    pooled = torch.stack(
        [
            model(input_ids=torch.tensor([text])).last_hidden_state[0].mean(0) if text else nothing
            for text in itertools.chain(*seen)
        ]
    ).reshape(size, texts, -1)
    value = 0.0
    weights = (*(loss.matryoshka_weights or [1.0] * len(loss.matryoshka_dims)), 1.0)
    for dims, weight in zip((*loss.matryoshka_dims, MODEL.d_model), weights):
        z = torch.nn.functional.normalize(pooled[..., :dims], dim=-1)
        of = every_piece if name == "every piece" else one_loss
        value += weight * of(z, seen, records.scores_NS, loss, torch.exp(log_temperature))
    value.backward()
    gradients = {name: p.grad.numpy() for name, p in model.named_parameters()}
    return records, value.item(), gradients, log_temperature.grad.item()


CASES = [
    *itertools.product(["all"], MESHES, EXECUTIONS),
    *itertools.product(["every piece"], [(1, 1, 1), (2, 2, 2)], [CHUNKED]),
    *itertools.product(["pairs", "triplets", "scored pairs"], [(2, 2, 2)], [PLAIN, CHUNKED]),
]
FAST = [
    ("all", (1, 8, 1), CHUNKED), ("pairs", (2, 2, 2), CHUNKED),
    ("every piece", (1, 1, 1), CHUNKED), ("triplets", (2, 2, 2), PLAIN),
    ("scored pairs", (2, 2, 2), PLAIN),
]  # fmt: skip


@pytest.mark.parametrize(("name", "shape", "train"), some_slow(FAST, CASES))
def test_loss_and_gradients_are_the_references(name, shape, train):
    records, value, gradients, of_temperature = expected(name)
    config = RunConfig("x", feed=FEED, model=MODEL, loss=LOSSES[name][1], train=train)
    mesh = make_mesh(MeshConfig(*shape))
    check_divides(config, mesh)
    params = from_huggingface(numpy_tensors(encoder()), MODEL)
    shardings = param_shardings(params, mesh, MODEL)
    batch = pack_batch(records, FEED)._replace(**in_batches(name))
    batch = put(batch, batch_shardings(mesh))
    compute = jax.jit(
        jax.value_and_grad(
            lambda p, b, t: batch_loss(p, b, config, mesh, None, Learned(t))[0], argnums=(0, 2)
        ),
        in_shardings=(shardings, batch_shardings(mesh), None), out_shardings=replicated(mesh),
    )  # fmt: skip
    temperature = jnp.log(jnp.float32(config.loss.temperature))
    found, (got, got_temperature) = compute(put(params, shardings), batch, temperature)
    assert abs(float(found) - value) <= 1e-6 * value
    whole = max(np.linalg.norm(g) for g in gradients.values())
    for tensor, gradient in to_huggingface(jax.device_get(got), MODEL).items():
        wanted = gradients[tensor]
        bound = 1e-5 * max(np.linalg.norm(wanted), 1e-3 * whole)
        assert np.linalg.norm(gradient - wanted) <= bound, tensor
    assert float(got_temperature) == pytest.approx(of_temperature, rel=1e-5)
