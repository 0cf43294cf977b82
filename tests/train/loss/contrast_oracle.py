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


def known_to_match(identity):
    """Query → the positives of all pairs that have it."""
    found = {}
    for query, positive in identity[:, :2].tolist():
        found.setdefault(query, set()).add(positive)
    return found


def softmax(logits, axis):
    e = np.exp(logits - logits.max(axis, keepdims=True))
    return e / e.sum(axis, keepdims=True)


def log_sum(logits, axis):
    top = np.maximum(logits.max(axis, keepdims=True), -1e300)
    with np.errstate(divide="ignore"):
        return np.log(np.exp(logits - top).sum(axis)) + np.squeeze(top, axis)


def contrast(
    q, p, negatives=None, *, temperature, config, identity=None, has_negative=None, teacher=None
):
    """Loss, gradients and what else is told of a batch; `negatives` is [B, K, D]."""
    q, p = np.asarray(q, np.float64), np.asarray(p, np.float64)
    b, d = q.shape
    n = np.zeros((b, 0, d)) if negatives is None else np.asarray(negatives, np.float64)
    has = np.ones(n.shape[:2], bool) if has_negative is None else np.asarray(has_negative)
    keys = np.concatenate([p, n.reshape(-1, d)])
    cosine = q @ keys.T
    masked = np.zeros(cosine.shape, bool)
    own_match = np.zeros(has.shape, bool)
    if identity is not None:
        pair = identity[:, :2]
        masked[:, :b] = shares_text(pair, pair) & ~np.eye(b, dtype=bool)
        masked[:, b:] = shares_text(pair, identity[:, 2:].reshape(-1, 1))
        own_match = (identity[:, 2:, None] == pair[:, None]).any(2)
        matches = known_to_match(identity)
        texts = np.concatenate([identity[:, 1], identity[:, 2:].reshape(-1)])
        known = np.array([np.isin(texts, list(matches[query])) for query in identity[:, 0]])
        own_match |= np.array([np.isin(r[2:], list(matches[r[0]])) for r in identity])
        masked |= known & ~np.eye(b, len(texts), dtype=bool)
    there = np.concatenate([np.ones(b, bool), has.reshape(-1)])
    logits = np.where(masked | ~there, -np.inf, cosine / temperature)
    own = np.diag(logits[:, :b])
    # Of the others over the positive: even float64 would lose a low loss in a difference.
    others = np.where(np.eye(*logits.shape, dtype=bool), -np.inf, logits)
    forward = np.logaddexp(0, log_sum(others, 1) - own).mean()
    backward = np.logaddexp(0, log_sum(others[:, :b], 0) - own).mean()
    # Gradient with respect to the cosines: what the others' get, their positive loses.
    of_query, of_positive = softmax(logits, 1) / b, np.zeros(cosine.shape)
    of_positive[:, :b] = softmax(logits[:, :b], 0) / b
    for gradient, axis in ((of_query, 1), (of_positive, 0)):
        np.fill_diagonal(gradient[:, :b], 0)
        np.fill_diagonal(gradient[:, :b], -gradient.sum(axis)[:b])
    dcosine = (config.query_weight * of_query + config.positive_weight * of_positive) / temperature
    dtemperature = -(dcosine * cosine).sum() / temperature
    # Margin, negative by negative.
    margin = total = 0.0
    cosines, dmargin = [], np.zeros(cosine.shape)
    for i, k in np.argwhere(has & ~own_match):
        column = b + i * n.shape[1] + k
        hinge = cosine[i, column] - cosine[i, i] + config.margin
        margin += max(hinge, 0)
        total += 1
        cosines.append(cosine[i, column])
        if hinge > 0:
            dmargin[i, column] += 1
            dmargin[i, i] -= 1
    if total:
        margin /= total
        dcosine += config.margin_weight * dmargin / total
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
            distance += error**2
            total += 1
            ddistill[i, i] += 2 * error
            if k is not None:
                ddistill[i, column] -= 2 * error
        if total:
            distance /= total
            dcosine += config.distill_weight * ddistill / total
    dkeys = dcosine.T @ q
    counted = (masked & there[None]).sum()
    in_batch = cosine[:, :b][~np.eye(b, dtype=bool) & ~masked[:, :b]]
    return Expected(
        config.query_weight * forward + config.positive_weight * backward
        + config.margin_weight * margin + config.distill_weight * distance,
        (dcosine @ keys, dkeys[:b], dkeys[b:].reshape(n.shape), dtemperature),
        forward, backward, margin,
        accuracy=(own >= logits.max(1) - 1e-9).mean(),
        positive_cosine=np.diag(cosine).mean(),
        in_batch_cosine=in_batch.mean() if len(in_batch) else 0.0,
        negative_cosine=np.mean(cosines) if cosines else 0.0,
        masked_share=counted / (b * (there.sum() - 1)),
        distill_loss=distance,
    )  # fmt: skip
