from jina_jax.config import LossConfig
from jina_jax.config.loss import loss_problems


def problems(*pairs, **values):
    return list(loss_problems(LossConfig(**values), 64, pairs))


def test_any_combination_of_terms_is_a_loss_where_some_term_is_left():
    assert problems() == problems(query_weight=0.0) == problems("a", positive_weight=0.0) == []
    # Triplets have the margin; pairs don't.
    assert problems(query_weight=0.0, positive_weight=0.0) == []
    (problem,) = problems("a", "b", query_weight=0.0, positive_weight=0.0)
    assert problem.endswith("are 0: no loss of pairs (a, b) would be left")
    (problem,) = problems(query_weight=0.0, positive_weight=0.0, margin_weight=0.0)
    assert problem.endswith("are 0: no loss would be left")
