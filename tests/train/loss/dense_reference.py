"""Every loss and mask over whole matrices in float64 torch, whose gradients are autograd's.

Written from the papers' formulas and apart from the package: plain loops over directions, one
matrix each, entries that do not count at minus infinity.
"""

import numpy as np
import torch


def reference(arrays, temperature, config, options):
    """The values of a batch by name, and the gradients of (q, p, negatives, temperature)."""
    leaves = [torch.tensor(np.asarray(x, np.float64), requires_grad=True) for x in arrays]
    leaves.append(torch.tensor(float(temperature), dtype=torch.float64, requires_grad=True))
    *texts, temperature = leaves
    values = Reference(texts, temperature, config, options).values
    found = torch.autograd.grad(values["loss"], leaves, allow_unused=True)
    gradients = [
        np.zeros(leaf.shape) if g is None else g.numpy()
        for leaf, g in zip(leaves, found, strict=True)
    ]
    return {name: float(value.detach()) for name, value in values.items()}, gradients


class Reference:
    """The values of a batch by name, as tensors."""

    def __init__(self, texts, temperature, config, options):
        self.config, self.temperature = config, temperature
        options = {k: None if v is None else np.asarray(v) for k, v in options.items()}
        self.q, self.p, *n = texts
        self.n = n[0] if n else None
        self.size = len(self.q)
        self.read(**options)
        self.directions()
        self.own_terms(options.get("teacher_BS"))
        self.values["loss"] = self.total()

    def read(
        self, identity_BT=None, has_negative_BN=None, label_B=None, own_only=None, guide_BTG=None,
        teacher_BS=None,
    ):  # fmt: skip
        b, config = self.size, self.config
        negatives = 0 if self.n is None else self.n.shape[1]
        self.has = np.ones((b, negatives), bool) if has_negative_BN is None else has_negative_BN
        self.identity, self.label = identity_BT, label_B
        self.own_only = bool(own_only) if own_only is not None else False
        self.matches = {}
        if identity_BT is not None:
            for query, positive, *_ in identity_BT.tolist():
                self.matches.setdefault(query, set()).add(positive)
        # Cosines that limits are for: of all queries, positives and negatives in one list.
        own = [self.q, self.p] + ([] if self.n is None else [self.n.reshape(-1, self.n.shape[-1])])
        vectors = torch.cat(own).detach()
        if config.mask_by == "guide":
            guide = torch.tensor(guide_BTG.astype(np.float64))
            hard = guide[:, 2:].reshape(-1, guide.shape[-1])
            vectors = torch.cat([guide[:, 0], guide[:, 1], hard])
        self.judged = (vectors @ vectors.T).numpy()
        self.limit = np.full(b, np.inf)
        if config.mask_by != "none":
            s = np.array([self.judged[i, b + i] for i in range(b)])
            size = np.abs(s) if config.mask_margin_kind == "relative" else 1.0
            default = -0.05 if config.mask_margin_kind == "relative" else 0.1
            margin = default if config.mask_margin is None else config.mask_margin
            self.limit = s + margin * size

    def known(self, i, text, j=None):
        """Whether a text, or one of record j's pair, matches record i's query."""
        if self.identity is None:
            return False
        pair = self.identity[i, :2].tolist()
        if j is not None and set(pair) & set(self.identity[j, :2].tolist()):
            return True
        return text in pair or text in self.matches[pair[0]]

    def texts_of(self, kind):
        """(record, number of the text, place in `judged`, is there) of each of a kind."""
        b = self.size
        if kind == "n":
            k = self.has.shape[1]
            return [
                (j, None if self.identity is None else self.identity[j, 2 + m], 2 * b + j * k + m,
                 self.has[j, m])
                for j in range(b) for m in range(k)
            ]  # fmt: skip
        column = "qp".index(kind)
        return [
            (j, None if self.identity is None else self.identity[j, column], column * b + j, True)
            for j in range(b)
        ]

    def rule(self, rows, keys, symmetric):
        """By entry: 0 counts, 1 is the record itself or not there, 2 texts, 3 label, 4 limit."""
        rows, keys = self.texts_of(rows), self.texts_of(keys)
        found = np.zeros((len(rows), len(keys)), int)
        of_pairs = len(keys) == self.size and keys[0][2] < 2 * self.size
        for a, (i, text_i, place_i, _) in enumerate(rows):
            for c, (j, text_j, place_j, there) in enumerate(keys):
                if i == j or not there:
                    found[a, c] = 1
                elif self.known(i, text_j, j if of_pairs else None) or (
                    symmetric and self.known(j, text_i, i)
                ):
                    found[a, c] = 2
                elif of_pairs and self.label is not None and 0 <= self.label[i] == self.label[j]:
                    found[a, c] = 3
                elif self.judged[place_i, place_j] >= self.limit[i]:
                    found[a, c] = 4
        return found

    def directions(self):
        config, b = self.config, self.size
        q, p = self.q, self.p
        cosine = q @ p.T
        own = torch.diagonal(cosine)
        scale = 1 / self.temperature
        minus_infinity = torch.tensor(-torch.inf, dtype=torch.float64)

        def sums(x, y, rule, hardness=0.0):
            s = x @ y.T
            logits = scale * s + hardness * s.detach()
            logits = torch.where(torch.tensor(rule == 0), logits, minus_infinity)
            if self.own_only:
                logits = torch.full_like(logits, -torch.inf)
            return logits

        qp = self.rule("q", "p", False)
        to_p = [sums(q, p, qp, config.in_batch_hardness)]
        pq = np.array(qp.T)
        # Against a positive counts what its own record's limit lets count.
        for i in range(b):
            for j in range(b):
                if qp[j, i] in (0, 4):
                    pq[i, j] = 4 if self.judged[j, b + i] >= self.limit[i] else 0
        groups = {"query_loss": to_p, "positive_loss": [sums(p, q, pq)]}
        groups["query_query_loss"] = [sums(q, q, self.rule("q", "q", True))]
        groups["positive_positive_loss"] = [sums(p, p, self.rule("p", "p", True))]
        masked, others = {2: (qp == 2).sum(), 3: (qp == 3).sum(), 4: (qp == 4).sum()}, b * (b - 1)
        self.counts = np.zeros((b, 0), bool)
        nearest = torch.where(torch.tensor(qp == 0), cosine, minus_infinity)
        if self.own_only:
            nearest = torch.full_like(nearest, -torch.inf)
        if self.n is not None:
            hard = self.n.reshape(-1, self.n.shape[-1])
            qn = self.rule("q", "n", False)
            to_p.append(sums(q, hard, qn, config.in_batch_hardness))
            groups["positive_positive_loss"].append(sums(p, hard, self.rule("p", "n", False)))
            k = self.has.shape[1]
            own_rule = np.zeros((b, k), int)
            for i in range(b):
                for m in range(k):
                    place = 2 * b + i * k + m
                    text = None if self.identity is None else self.identity[i, 2 + m]
                    if not self.has[i, m]:
                        own_rule[i, m] = 1
                    elif self.known(i, text):
                        own_rule[i, m] = 2
                    elif self.judged[i, place] >= self.limit[i]:
                        own_rule[i, m] = 4
            self.own_rule, self.counts = own_rule, own_rule == 0
            self.own_cosine = (q[:, None] * self.n).sum(-1)
            logits = scale * self.own_cosine
            logits = logits + config.hard_negative_hardness * self.own_cosine.detach()
            to_p.append(torch.where(torch.tensor(self.counts), logits, minus_infinity))
            far = torch.where(torch.tensor(qn == 0), q @ hard.T, minus_infinity)
            if self.own_only:
                far = torch.full_like(far, -torch.inf)
            mine = torch.where(torch.tensor(self.counts), self.own_cosine, minus_infinity)
            nearest = torch.cat([nearest, far, mine], 1)
            for code in masked:
                masked[code] += (qn == code).sum() + (own_rule == code).sum()
            others += b * self.has.sum()
        weights = (
            config.query_weight, config.positive_weight,
            config.query_query_weight, config.positive_positive_weight,
        )  # fmt: skip
        self.values, self.weights = {}, {}
        joint, counted = [], 0.0
        for (name, parts), weight in zip(groups.items(), weights, strict=True):
            if weight == 0 and name != "query_loss":
                continue
            logits = torch.cat(parts, 1)
            over = torch.log1p(torch.exp(logits - scale * own[:, None]).sum(1))
            self.values[name], self.weights[name] = over.mean(), weight
            joint.append(weight * torch.exp(logits - scale * own[:, None]).sum(1))
            counted += weight if name in ("query_loss", "positive_loss") else 0.0
        if config.partition == "joint":
            self.values["joint_loss"] = torch.log(counted + sum(joint)).mean()
            self.weights = {"joint_loss": 1.0}
        self.own, self.cosine = own, cosine
        self.values["accuracy"] = (own >= nearest.max(1).values - 1e-9).double().mean()
        self.values["positive_cosine"] = own.mean()
        counting = cosine[torch.tensor(qp == 0)]
        mean = counting.mean() if len(counting) else torch.tensor(0.0)
        self.values["in_batch_cosine"] = mean
        self.values["masked_share"] = torch.tensor(masked[2] / others)
        if self.label is not None:
            self.values["label_masked_share"] = torch.tensor(masked[3] / others)
        if config.mask_by != "none":
            self.values["margin_masked_share"] = torch.tensor(masked[4] / others)
        if config.in_batch_hardness:
            self.values["in_batch_weight"] = torch.exp(config.in_batch_hardness * mean)

    def own_terms(self, teacher):
        config = self.config
        if self.n is not None:
            counts = torch.tensor(self.counts)
            total = max(int(counts.sum()), 1)
            hinge = torch.relu(self.own_cosine - self.own[:, None] + config.margin)
            self.values["margin_loss"] = torch.where(counts, hinge, 0.0).sum() / total
            self.values["negative_cosine"] = torch.where(counts, self.own_cosine, 0.0).sum() / total
            self.weights["margin_loss"] = config.margin_weight
            if config.hard_negative_hardness:
                weight = config.hard_negative_hardness * self.values["negative_cosine"]
                self.values["hard_negative_weight"] = torch.exp(weight)
        if teacher is not None:
            self.values["distill_loss"] = self.distilled(np.asarray(teacher, np.float64))
            self.weights["distill_loss"] = config.distill_weight
        if config.spread_weight or config.spread_mean_weight:
            self.values["spread_loss"] = sum(self.spread(x) for x in (self.q, self.p))
            self.weights["spread_loss"] = 1.0

    def distilled(self, teacher):
        terms = []
        for i in range(self.size):
            if self.n is None:
                if not np.isnan(teacher[i, 0]):
                    terms.append((self.own[i] - teacher[i, 0]) ** 2)
                continue
            there = [m for m in range(self.has.shape[1]) if self.own_rule[i, m] in (0, 4)]
            there = [m for m in there if not np.isnan(teacher[i, 1 + m])]
            if np.isnan(teacher[i, 0]) or not there:
                continue
            if self.config.distill == "margin":
                for m in there:
                    student = self.own[i] - self.own_cosine[i, m]
                    terms.append((student - (teacher[i, 0] - teacher[i, 1 + m])) ** 2)
                continue
            student = torch.stack([self.own[i], *(self.own_cosine[i, m] for m in there)])
            wanted = torch.tensor([teacher[i, 0], *(teacher[i, 1 + m] for m in there)])
            wanted = torch.softmax(wanted / self.config.distill_temperature, 0)
            found = torch.log_softmax(student / self.config.distill_temperature, 0)
            terms.append((wanted * (torch.log(wanted) - found)).sum())
        return sum(terms) / len(terms) if terms else torch.tensor(0.0, dtype=torch.float64)

    def spread(self, x):
        others = (x @ x.T)[~torch.eye(len(x), dtype=torch.bool)]
        second = torch.relu((others**2).mean() - 1 / x.shape[1])
        mean = others.mean() ** 2
        return self.config.spread_weight * second + self.config.spread_mean_weight * mean

    def total(self):
        return sum(weight * self.values[name] for name, weight in self.weights.items())
