"""Measures of retrieval beside pytrec_eval and sentence-transformers, of the same embeddings."""

from dataclasses import replace

import numpy as np
import pytest
import pytrec_eval
import torch
from sentence_transformers.sentence_transformer.evaluation import InformationRetrievalEvaluator
from sentence_transformers.util import cos_sim

from jina_jax.config import PromptConfig
from jina_jax.devices.mesh import make_mesh
from jina_jax.evaluate.retrieval import RetrievalTask, corpus_of, rank_by_embedding, score
from jina_jax.inference.embedder import Embedder
from tests.vectors import numbered

QUERIES = 40


class Vectors(Embedder):
    """The text is the number of the row that is its embedding."""

    prompts = PromptConfig()
    mesh = make_mesh()

    def __init__(self, z_ND):
        self.z_ND = z_ND

    def encode(self, texts, *, prompt=None, progress=False):
        return self.z_ND[[int(t) for t in texts]]

    def own(self, texts, prompt=None):
        texts = list(texts)
        return numbered(self.encode(texts[n : n + 64]) for n in range(0, len(texts), 64))


class OfVectors(InformationRetrievalEvaluator):
    """Their evaluator, of embeddings that are there already."""

    def __init__(self, z_ND, *args, **more):
        super().__init__(*args, score_functions={"cosine": cos_sim}, **more)
        self.z_ND = torch.from_numpy(z_ND)

    def embed_inputs(self, model, sentences, **more):
        return self.z_ND[[int(text) for text in sentences]]


def random_task(seed, passages, most_relevant, *, has_ties):
    """Queries, passages and judgements of three degrees, and the embeddings of all texts."""
    rng = np.random.default_rng(seed)
    if has_ties:
        # Of length 1, with cosines that are multiples of 1/8: exact in any order of adding.
        z_ND = rng.choice([-0.25, 0.25], (QUERIES + passages, 16)).astype(np.float32)
    else:
        z_ND = rng.standard_normal((QUERIES + passages, 16)).astype(np.float32)
        z_ND /= np.linalg.norm(z_ND, axis=1, keepdims=True)
    # Ids whose order is not that of the corpus, nor of their numbers.
    ids = [f"p{n}" for n in rng.permutation(passages)]
    corpus = {name: str(QUERIES + row) for row, name in enumerate(ids)}
    relevant = {}
    for q in range(QUERIES):
        # The nearer passages are likelier to be relevant, so that the measures are not near 0.
        noisy = z_ND[QUERIES:] @ z_ND[q] + 0.3 * rng.standard_normal(passages)
        chosen = np.argsort(-noisy)[: rng.integers(1, most_relevant + 1)]
        judged = {ids[i]: 0 for i in rng.choice(passages, min(5, passages), replace=False)}
        relevant[f"q{q}"] = judged | {ids[i]: int(rng.integers(1, 4)) for i in chosen}
    queries = {f"q{q}": str(q) for q in range(QUERIES)}
    return RetrievalTask("random", queries, corpus_of(corpus), relevant), z_ND


def ours(task, z_ND, k):
    return score(task, rank_by_embedding(task, Vectors(z_ND), k), k)


def of_pytrec(task, z_ND, k):
    """Of the scores of all passages."""
    score_QC = z_ND[:QUERIES].astype(np.float64) @ z_ND[QUERIES:].astype(np.float64).T
    run = {
        query: dict(zip(task.corpus.ids, map(float, row)))
        for query, row in zip(task.queries, score_QC)
    }
    names = {f"ndcg_cut.{k}", f"recall.{k}", f"map_cut.{k}", "recip_rank"}
    found = pytrec_eval.RelevanceEvaluator(task.relevant, names).evaluate(run).values()
    # Theirs has no cut-off.
    reciprocal = [r if r > 1 / (k + 0.5) else 0 for r in (q["recip_rank"] for q in found)]
    means = {
        f"{name}@{k}": np.mean([q[f"{of}_{k}"] for q in found])
        for name, of in (("ndcg", "ndcg_cut"), ("recall", "recall"), ("map", "map_cut"))
    }
    return means | {f"mrr@{k}": np.mean(reciprocal)}


def of_sentence_transformers(task, z_ND, k):
    """With the names of passages in the opposite order, as theirs have the earlier first."""
    names = sorted(task.corpus.ids)
    other = dict(zip(names, reversed(names)))
    corpus = {other[name]: text for name, text in zip(task.corpus.ids, task.corpus.texts())}
    relevant = {
        query: {other[name] for name, degree in judged.items() if degree > 0}
        for query, judged in task.relevant.items()
    }
    evaluator = OfVectors(
        z_ND, task.queries, corpus, relevant, corpus_chunk_size=50, mrr_at_k=[k], ndcg_at_k=[k],
        accuracy_at_k=[k], precision_recall_at_k=[k], map_at_k=[k],
    )  # fmt: skip
    found = evaluator.compute_all_metrics(None)["cosine"]
    return {f"{name}@{k}": found[f"{name}@k"][k] for name in ("ndcg", "recall", "map", "mrr")}


def binary(task):
    """Without degrees of relevance, which sentence-transformers does not know."""
    relevant = {q: {p: min(d, 1) for p, d in of.items()} for q, of in task.relevant.items()}
    return replace(task, relevant=relevant)


CASES = pytest.mark.parametrize("has_ties", [False, True], ids=["distinct", "ties"])
SIZES = pytest.mark.parametrize(
    ("passages", "k"), [(200, 1), (200, 3), (200, 10), (200, 100), (6, 10), (1, 10)]
)


@CASES
@SIZES
def test_equal_to_pytrec_eval_of_all_scores(passages, k, has_ties):
    for seed in range(3):
        task, z_ND = random_task(seed, passages, min(passages, 15), has_ties=has_ties)
        found = ours(task, z_ND, k)
        assert found == pytest.approx(of_pytrec(task, z_ND, k), abs=1e-6)
        assert 0 < found[f"ndcg@{k}"] <= 1


@CASES
@SIZES
def test_equal_to_sentence_transformers_where_no_more_than_k_are_relevant(passages, k, has_ties):
    for seed in range(3):
        graded, z_ND = random_task(seed, passages, min(passages, 15, k), has_ties=has_ties)
        theirs = of_sentence_transformers(graded, z_ND, k)
        assert ours(binary(graded), z_ND, k) == pytest.approx(theirs, abs=1e-6)
        # Degrees change the nDCG alone.
        del theirs[f"ndcg@{k}"]
        found = ours(graded, z_ND, k)
        assert {name: found[name] for name in theirs} == pytest.approx(theirs, abs=1e-6)


def test_map_is_of_all_relevant_passages_where_sentence_transformers_takes_k():
    task, z_ND = random_task(0, 200, 15, has_ties=False)
    for query, judged in task.relevant.items():
        one = replace(binary(task), queries={query: task.queries[query]}, relevant={query: judged})
        theirs = of_sentence_transformers(one, z_ND, 3)["map@3"]
        number = sum(degree > 0 for degree in judged.values())
        expected = theirs * min(3, number) / number
        assert ours(one, z_ND, 3)["map@3"] == pytest.approx(expected, abs=1e-6)
    assert any(sum(d > 0 for d in judged.values()) > 3 for judged in task.relevant.values())


def test_a_query_without_a_relevant_passage_counts_as_nothing_found():
    task, z_ND = random_task(0, 50, 5, has_ties=True)
    relevant = task.relevant | {"q0": {"p0": 0}, "q1": {"p1": 0, "p2": 0}}
    without = replace(task, relevant=relevant)
    found = ours(without, z_ND, 10)
    assert found == pytest.approx(of_pytrec(without, z_ND, 10), abs=1e-6)
    # sentence-transformers leaves these two out.
    theirs = of_sentence_transformers(binary(without), z_ND, 10)
    assert found["recall@10"] == pytest.approx(theirs["recall@10"] * (QUERIES - 2) / QUERIES)


def test_a_querys_own_passage_is_left_out_of_both():
    task, z_ND = random_task(4, 50, 5, has_ties=True)
    # The first query is the passage of its id too, and nearest to itself.
    ids = ["q0", *task.corpus.ids[1:]]
    corpus = corpus_of(dict(zip(ids, task.corpus.texts())))
    z_ND[QUERIES] = z_ND[0]
    task = replace(task, corpus=corpus, own_passages=frozenset({"q0"}))
    found = rank_by_embedding(task, Vectors(z_ND), 10)
    assert "q0" not in found["q0"] and len(found["q0"]) == 10
    cosines = dict(zip(ids, z_ND[QUERIES:] @ z_ND[0]))
    del cosines["q0"]
    expected = sorted(cosines, key=lambda name: (cosines[name], name), reverse=True)[:10]
    assert list(found["q0"]) == expected
