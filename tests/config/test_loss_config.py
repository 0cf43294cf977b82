import pytest

from jina_jax.config import (
    BertConfig,
    DataConfig,
    GuideConfig,
    LossConfig,
    RunConfig,
)
from jina_jax.config.loss import loss_problems
from jina_jax.config.validation import validate
from jina_jax.errors import UserError


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


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ({"partition": "joint", "query_weight": 0.0}, "wants loss.query_weight above 0"),
        ({"mask_margin": 0.1}, "there is none: set loss.mask_by to 'model' or 'guide'"),
        ({"mask_margin_kind": "relative"}, "there is none: set loss.mask_by"),
        (
            {"mask_by": "model", "mask_margin_kind": "relative", "mask_margin": -1.0},
            "must be above -1 where it is relative",
        ),
        ({"distill": "kl"}, "raise the weight above 0"),
        ({"in_batch_hardness": 9.0, "query_weight": 0.0}, "weighs terms of (a)"),
        ({"hard_negative_hardness": 5.0, "query_weight": 0.0}, "weighs terms of (a)"),
        ({"quantized": ("int8", "int8")}, "names a precision twice"),
        ({"cosent_weight": 0.0}, "scored pairs would have no loss"),
    ],
)
def test_fields_that_contradict_each_other_are_refused(values, reason):
    (problem,) = problems(**values)
    assert reason in problem


def test_losses_that_the_data_cannot_serve_are_refused():
    def check(loss, **data):
        validate(
            RunConfig("x", loss=LossConfig(**loss), model=BertConfig(), data=DataConfig(**data))
        )

    guide = {"guide": GuideConfig("some/model")}
    check({"mask_by": "guide"}, **guide)
    with pytest.raises(UserError, match=r"loss\.mask_by='guide' wants a guide's embeddings"):
        check({"mask_by": "guide"})
    with pytest.raises(UserError, match=r"distill_embeddings_weight wants a guide's embeddings"):
        check({"distill_embeddings_weight": 1.0})
    with pytest.raises(UserError, match=r"set data\.guide\.dims to the number of dimensions"):
        check({"distill_embeddings_weight": 1.0}, **guide)
