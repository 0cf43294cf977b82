"""Contrastive losses with the whole similarity matrix, in float64 NumPy."""

import numpy as np


def shares_text(rows, keys):
    """True at (i, j) where a text of row i is also a text of key j."""
    return (rows[:, None, :, None] == keys[None, :, None, :]).any((2, 3))


def softmax(logits, axis):
    e = np.exp(logits - logits.max(axis, keepdims=True))
    return e / e.sum(axis, keepdims=True)


def log_sum(logits, axis):
    top = logits.max(axis, keepdims=True)
    return np.log(np.exp(logits - top).sum(axis)) + np.squeeze(top, axis)


def contrast(
    q, p, negatives=None, *, temperature, both_ways, identity=None, negative_identity=None,
    weight=None,
):  # fmt: skip
    """Loss, gradients with respect to (q, p, negatives, temperature), and accuracy."""
    q, p = np.asarray(q, np.float64), np.asarray(p, np.float64)
    b = len(q)
    n = np.zeros((0, q.shape[1])) if negatives is None else np.asarray(negatives, np.float64)
    weight = np.ones(b) if weight is None else np.asarray(weight, np.float64)
    weight = weight / weight.sum()
    keys = np.concatenate([p, n])
    cosine = q @ keys.T
    logits = cosine / temperature
    if identity is not None:
        logits[:, :b][shares_text(identity, identity) & ~np.eye(b, dtype=bool)] = -np.inf
    if negative_identity is not None:
        logits[:, b:][shares_text(identity, negative_identity)] = -np.inf
    own = np.diag(logits[:, :b])
    loss = weight @ (log_sum(logits, 1) - own)
    # Gradient with respect to the logits.
    d = weight[:, None] * softmax(logits, 1)
    d[:, :b] -= np.diag(weight)
    if both_ways:
        loss += weight @ (log_sum(logits[:, :b], 0) - own)
        d[:, :b] += softmax(logits[:, :b], 0) * weight[None] - np.diag(weight)
    dkeys = d.T @ q / temperature
    gradients = d @ keys / temperature, dkeys[:b], dkeys[b:], -(d * cosine).sum() / temperature**2
    return loss, gradients, (own >= logits.max(1) - 1e-9).mean()
