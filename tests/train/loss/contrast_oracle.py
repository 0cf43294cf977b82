"""Contrastive losses with the whole similarity matrix, in float64 NumPy."""

from typing import NamedTuple

import numpy as np


class Expected(NamedTuple):
    loss: float
    gradients: tuple
    """With respect to (q, p, negatives, temperature)."""
    query_loss: float
    positive_loss: float
    margin_loss: float
    accuracy: float
    positive_cosine: float
    in_batch_cosine: float
    negative_cosine: float
    masked_share: float
    distill_loss: float = 0.0


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
    q, p, negatives=None, *, temperature, terms, identity=None, has_negative=None, weight=None,
    teacher=None,
):  # fmt: skip
    """Loss, gradients and what else is told of a batch; `negatives` is [B, K, D]."""
    q, p = np.asarray(q, np.float64), np.asarray(p, np.float64)
    b, d = q.shape
    n = np.zeros((b, 0, d)) if negatives is None else np.asarray(negatives, np.float64)
    has = np.ones(n.shape[:2], bool) if has_negative is None else np.asarray(has_negative)
    weight = np.ones(b) if weight is None else np.asarray(weight, np.float64)
    share = weight / weight.sum()
    keys = np.concatenate([p, n.reshape(-1, d)])
    cosine = q @ keys.T
    masked = np.zeros(cosine.shape, bool)
    own_match = np.zeros(has.shape, bool)
    if identity is not None:
        pair = identity[:, :2]
        masked[:, :b] = shares_text(pair, pair) & ~np.eye(b, dtype=bool)
        masked[:, b:] = shares_text(pair, identity[:, 2:].reshape(-1, 1))
        own_match = (identity[:, 2:, None] == pair[:, None]).any(2)
    there = np.concatenate([np.ones(b, bool), has.reshape(-1)])
    logits = np.where(masked | ~there, -np.inf, cosine / temperature)
    own = np.diag(logits[:, :b])
    forward = share @ (log_sum(logits, 1) - own)
    backward = share @ (log_sum(logits[:, :b], 0) - own)
    # Gradient with respect to the cosines.
    of_query, of_positive = share[:, None] * softmax(logits, 1), np.zeros(cosine.shape)
    of_query[:, :b] -= np.diag(share)
    of_positive[:, :b] = softmax(logits[:, :b], 0) * share[None] - np.diag(share)
    dcosine = (terms.query * of_query + terms.positive * of_positive) / temperature
    dtemperature = -(dcosine * cosine).sum() / temperature
    # Margin, negative by negative.
    margin = total = 0.0
    cosines, dmargin = [], np.zeros(cosine.shape)
    for i, k in np.argwhere(has & ~own_match):
        column = b + i * n.shape[1] + k
        hinge = cosine[i, column] - cosine[i, i] + terms.epsilon
        margin += weight[i] * max(hinge, 0)
        total += weight[i]
        cosines.append(cosine[i, column])
        if hinge > 0:
            dmargin[i, column] += weight[i]
            dmargin[i, i] -= weight[i]
    if total:
        margin /= total
        dcosine += terms.margin * dmargin / total
    # Distillation, score by score.
    distance = total = 0.0
    ddistill = np.zeros(cosine.shape)
    if teacher is not None:
        teacher = np.asarray(teacher, np.float64)
        for i, k in np.argwhere(has & ~own_match) if n.shape[1] else [(i, None) for i in range(b)]:
            column = i if k is None else b + i * n.shape[1] + k
            wanted = teacher[i, 0] - (0 if k is None else teacher[i, 1 + k])
            if np.isnan(wanted):
                continue
            error = cosine[i, i] - (0 if k is None else cosine[i, column]) - wanted
            distance += weight[i] * error**2
            total += weight[i]
            ddistill[i, i] += 2 * weight[i] * error
            if k is not None:
                ddistill[i, column] -= 2 * weight[i] * error
        if total:
            distance /= total
            dcosine += terms.distill * ddistill / total
    dkeys = dcosine.T @ q
    counted = (masked & there[None]).sum()
    in_batch = cosine[:, :b][~np.eye(b, dtype=bool) & ~masked[:, :b]]
    return Expected(
        terms.query * forward + terms.positive * backward + terms.margin * margin
        + terms.distill * distance,
        (dcosine @ keys, dkeys[:b], dkeys[b:].reshape(n.shape), dtemperature),
        forward, backward, margin,
        accuracy=(own >= logits.max(1) - 1e-9).mean(),
        positive_cosine=np.diag(cosine).mean(),
        in_batch_cosine=in_batch.mean() if len(in_batch) else 0.0,
        negative_cosine=np.mean(cosines) if cosines else 0.0,
        masked_share=counted / (b * (there.sum() - 1)),
        distill_loss=distance,
    )  # fmt: skip
