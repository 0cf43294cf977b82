"""Encoders of every family against torch: hidden states, embeddings, gradients, weights, meshes."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers

from jina_jax.config import (
    BertConfig,
    MeshConfig,
    ModernBertConfig,
    MPNetConfig,
    PoolingConfig,
    Qwen3Config,
    T5Config,
)
from jina_jax.devices.mesh import make_mesh, param_shardings, replicated, split_first_axis
from jina_jax.model.dropout import DropoutKey
from jina_jax.model.encoder import (
    apply,
    config_from_huggingface,
    config_to_huggingface,
    embed,
    family_of,
    from_huggingface,
    init_params,
    to_huggingface,
)
from jina_jax.model.family import Execution
from jina_jax.model.huggingface import DTYPES
from jina_jax.model.layers import gelu
from jina_jax.train.encode import encode_rows
from tests.bert_oracle import TINY_BERT, torch_bert
from tests.model.torch_oracle import TINY, numpy_tensors, torch_encoder

ROBERTA = dataclasses.replace(
    TINY_BERT, model_type="roberta", pad_token_id=1, type_vocab_size=1, max_position_embeddings=42
)
T5 = dataclasses.replace(TINY, vocab_size=104)
XLM_R = dataclasses.replace(ROBERTA, model_type="xlm-roberta")
MPNET = MPNetConfig(
    vocab_size=101, hidden_size=24, num_hidden_layers=3, num_attention_heads=4,
    intermediate_size=48, max_position_embeddings=42,
)  # fmt: skip
MODERNBERT = ModernBertConfig(
    vocab_size=101, hidden_size=32, num_hidden_layers=5, num_attention_heads=4,
    intermediate_size=48, max_position_embeddings=64, local_attention=8, pad_token_id=0,
    mlp_dropout=0.1, attention_dropout=0.1, embedding_dropout=0.1,
)  # fmt: skip
QWEN3 = Qwen3Config(
    vocab_size=101, hidden_size=24, num_hidden_layers=3, num_attention_heads=8,
    num_key_value_heads=4, head_dim=8, intermediate_size=48, max_position_embeddings=64,
    attention_dropout=0.1,
)  # fmt: skip


def torch_model(cls, config):
    """A random model whose every weight matters, from the `config.json` that we write."""
    torch.manual_seed(0)
    document = config_to_huggingface(config)
    del document["torch_dtype"]
    model = cls(transformers.AutoConfig.for_model(**document))
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "norm" in name.lower() and name.endswith("weight"):
                weight.uniform_(0.5, 1.5)
            else:
                weight.normal_(0, 0.15)
    return model.eval()


def test_gelu_and_its_gradient_are_those_of_torch_on_a_mesh():
    mesh = make_mesh(MeshConfig(fsdp=1))
    x_ND = jax.random.normal(jax.random.key(0), (mesh.size, 400)) * 3
    spread = jax.shard_map(
        gelu, mesh=mesh, in_specs=split_first_axis(mesh).spec, out_specs=split_first_axis(mesh).spec
    )
    value, gradient = jax.value_and_grad(lambda x_ND: jnp.sum(spread(x_ND) ** 2))(x_ND)
    given = torch.tensor(np.asarray(x_ND), requires_grad=True)
    expected = (torch.nn.functional.gelu(given) ** 2).sum()
    expected.backward()
    np.testing.assert_allclose(value, expected.item(), rtol=1e-5)
    np.testing.assert_allclose(gradient, given.grad, rtol=1e-5, atol=1e-5)


CASES = {
    "t5": lambda: (T5, torch_encoder(T5)),
    "bert": lambda: (TINY_BERT, torch_bert(transformers.BertModel, TINY_BERT)),
    "xlm-roberta": lambda: (XLM_R, torch_bert(transformers.XLMRobertaModel, XLM_R)),
    "mpnet": lambda: (MPNET, torch_model(transformers.MPNetModel, MPNET)),
    "modernbert": lambda: (MODERNBERT, torch_model(transformers.ModernBertModel, MODERNBERT)),
    "qwen3": lambda: (QWEN3, torch_model(transformers.Qwen3Model, QWEN3)),
    "roberta": lambda: (ROBERTA, torch_bert(transformers.RobertaModel, ROBERTA)),
}
LENGTH = 40
# Lengths of the texts of each packed row; the rest of a row is padding.
ROWS = [[40], [7, 1, 20, 9], [13, 26], [5, 9, 3, 12], [20, 11], [30, 2], [25], [4, 4, 4, 8]]
# Texts of (row, slot): query, positive, negative.
TRIPLETS = [((3, 0), (4, 0), (5, 0)), ((3, 1), (4, 1), (6, 0)), ((3, 3), (1, 2), (2, 1))]


SLOW = pytest.mark.slow
# It differs from RoBERTa by its name alone.
PARAMS = [pytest.param(name, marks=[SLOW] if name == "xlm-roberta" else []) for name in CASES]


@pytest.fixture(scope="module", params=PARAMS)
def family(request):
    """(config, torch model, our parameters with the same weights)."""
    config, model = CASES[request.param]()
    # A part that embeddings don't need.
    model.pooler = None
    return config, model, from_huggingface(numpy_tensors(model), config)


def texts_of(config):
    rng = np.random.default_rng(0)
    # No padding token: torch's RoBERTa numbers positions by it.
    return [[rng.integers(3, config.vocab_size, n) for n in row] for row in ROWS]


@pytest.fixture(scope="module")
def packed(family):
    """Ids and segments of packed rows, and the texts in them."""
    texts = texts_of(family[0])
    ids, segments = np.zeros((2, len(ROWS), LENGTH), np.int32)
    for row, of_row in enumerate(texts):
        joined = np.concatenate(of_row)
        ids[row, : len(joined)] = joined
        numbers = np.repeat(np.arange(1, len(of_row) + 1), [len(t) for t in of_row])
        segments[row, : len(joined)] = numbers
    return jnp.asarray(ids), jnp.asarray(segments), texts


def alone(model, text):
    """Torch's hidden states of one text in a batch of its own."""
    return model(input_ids=torch.tensor(text)[None]).last_hidden_state[0]


def torch_pooled(model, text, pooling="mean"):
    hidden = alone(model, text)
    one = {"mean": hidden.mean(0), "cls": hidden[0], "lasttoken": hidden[-1]}[pooling]
    return torch.nn.functional.normalize(one, dim=0)


def test_hidden_states_of_packed_rows_are_those_of_texts_alone(family, packed):
    config, model, params = family
    ids, segments, texts = packed
    hidden = np.asarray(apply(config, params, ids, segments))
    for row, of_row in enumerate(texts):
        for slot, text in enumerate(of_row, 1):
            expected = alone(model, text).detach().numpy()
            got = hidden[row][np.asarray(segments)[row] == slot]
            np.testing.assert_allclose(got, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("pooling", ["mean", "cls", "lasttoken"])
def test_embeddings(family, packed, pooling):
    config, model, params = family
    ids, segments, texts = packed
    got = np.asarray(embed(config, PoolingConfig(pooling), params, ids, segments, 5))
    for row, of_row in enumerate(texts):
        for slot, text in enumerate(of_row):
            expected = torch_pooled(model, text, pooling).detach().numpy()
            np.testing.assert_allclose(got[row, slot], expected, rtol=0, atol=1e-6)
        # A slot without a text is zero, whatever the pooling.
        assert not got[row, len(of_row) :].any()


def triplet_loss(config, params, ids, segments, dropout_key=None, execution=Execution()):
    """Of the embeddings of the packed rows."""
    return triplet_loss_of(
        embed(
            config, PoolingConfig(), params, ids, segments, 5,
            dropout_key=dropout_key, execution=execution,
        )
    )  # fmt: skip


def triplet_loss_of(z):
    """InfoNCE both ways over the positives, and a margin on the negatives."""
    q, p, n = (jnp.stack([z[t[i]] for t in TRIPLETS]) for i in range(3))
    logits = q @ p.T / 0.05
    nce = -jnp.diagonal(jax.nn.log_softmax(logits) + jax.nn.log_softmax(logits.T)).mean()
    return nce + jax.nn.relu(0.5 - (q * p).sum(1) + (q * n).sum(1)).mean()


def torch_triplet_loss(model, texts):
    q, p, n = (
        torch.stack([torch_pooled(model, texts[t[i][0]][t[i][1]]) for t in TRIPLETS])
        for i in range(3)
    )
    logits, own = q @ p.T / 0.05, torch.arange(3)
    cross = torch.nn.functional.cross_entropy
    margin = torch.relu(0.5 - (q * p).sum(1) + (q * n).sum(1)).mean()
    return cross(logits, own) + cross(logits.T, own) + margin


def test_gradients_of_the_triplet_loss_for_every_parameter(family, packed):
    config, model, params = family
    ids, segments, texts = packed
    loss = jax.jit(jax.value_and_grad(lambda p: triplet_loss(config, p, ids, segments)))
    value, gradients = loss(params)
    model.zero_grad()
    expected = torch_triplet_loss(model, texts)
    expected.backward()
    # Cosines are divided by 0.05.
    assert abs(float(value) - expected.item()) <= 1e-5 * max(1.0, expected.item())
    theirs = {name: p.grad.numpy() for name, p in model.named_parameters()}
    whole = max(np.linalg.norm(gradient) for gradient in theirs.values())
    for name, gradient in to_huggingface(gradients, config).items():
        wanted = theirs[name]
        # A key's bias shifts all scores of a query alike: its gradient is rounding alone.
        bound = max(np.linalg.norm(wanted), 1e-3 * whole)
        assert np.linalg.norm(gradient - wanted) <= 1e-4 * bound, name


def test_weights_go_round_bit_by_bit(family):
    config, model, params = family
    written = to_huggingface(params, config)
    theirs = {k: v for k, v in numpy_tensors(model).items() if k in written}
    assert len(theirs) == len(written) <= len(jax.tree.leaves(params))
    for name, array in written.items():
        np.testing.assert_array_equal(array, theirs[name])


def test_the_config_goes_round_and_is_transformers_own(family):
    config, model, _ = family
    document = config_to_huggingface(config)
    assert config_from_huggingface(document) == config
    read = transformers.AutoConfig.for_model(**document)
    assert type(read) is type(model.config)
    for name in {f.name for f in dataclasses.fields(config)} - set(DTYPES):
        # transformers 5 keeps two fields of ModernBERT under other names.
        assert getattr(read, name, getattr(config, name)) == getattr(config, name), name
    # As it writes them.
    assert config_from_huggingface(read.to_dict()) == config


@pytest.fixture(scope="module")
def key():
    return DropoutKey(jax.random.key(7), jnp.arange(len(ROWS)))


def gradient(config, params, ids, segments, key, execution=Execution()):
    def loss(p):
        return triplet_loss(config, p, ids, segments, key, execution)

    return jax.jit(jax.value_and_grad(loss))(params)


def assert_same(one, other, rtol=1e-4):
    assert abs(float(one[0]) - float(other[0])) <= 1e-5
    norm = max(float(jnp.linalg.norm(x)) for x in jax.tree.leaves(one[1]))
    for a, b in zip(jax.tree.leaves(one[1]), jax.tree.leaves(other[1]), strict=True):
        assert np.linalg.norm(np.asarray(a) - np.asarray(b)) <= rtol * norm


@pytest.fixture(scope="module")
def with_dropout(family, packed, key):
    config, _, params = family
    found = gradient(config, params, *packed[:2], key)
    # Else what follows would compare nothing.
    assert abs(float(found[0]) - float(gradient(config, params, *packed[:2], None)[0])) > 1e-3
    return found


@pytest.mark.slow
@pytest.mark.parametrize(
    "execution",
    [
        pytest.param(Execution(scan=True), id="scan"),
        pytest.param(Execution(remat="dots"), id="dots"),
        pytest.param(Execution(scan=True, remat="full"), id="scan and full"),
    ],
)
def test_how_layers_are_run_changes_no_value(family, packed, key, with_dropout, execution):
    config, _, params = family
    assert_same(with_dropout, gradient(config, params, *packed[:2], key, execution))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("shape", "execution"),
    [
        ((2, 2, 2), Execution(scan=True, remat="full")),
        *[(shape, Execution()) for shape in ((8, 1, 1), (2, 2, 2), (1, 8, 1), (2, 1, 4))],
    ],
)
def test_eight_devices_give_one_devices_gradient(
    family, packed, key, with_dropout, shape, execution
):
    config, _, params = family
    mesh = make_mesh(MeshConfig(*shape))
    shardings = param_shardings(params, mesh, config)
    rows = split_first_axis(mesh)

    def embed_all(p, ids, segments):
        def encode(p, rows, access):
            ids, segments, numbers = rows
            return embed(
                config, PoolingConfig(), p, ids, segments, 5,
                dropout_key=DropoutKey(key.key, numbers),
                execution=execution._replace(access=access),
            )  # fmt: skip

        arrays = ids, segments, jnp.arange(len(ids))
        return encode_rows(encode, p, arrays, shardings=shardings, mesh=mesh)

    def loss(p, ids, segments):
        return triplet_loss_of(embed_all(p, ids, segments))

    compute = jax.jit(
        jax.value_and_grad(loss),
        in_shardings=(shardings, rows, rows), out_shardings=replicated(mesh),
    )  # fmt: skip
    assert_same(with_dropout, compute(params, *packed[:2]))


def test_every_rule_names_a_matrix_and_every_matrix_has_one(family):
    config = family[0]
    params = jax.eval_shape(lambda: init_params(config, jax.random.key(0)))
    mesh = make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))
    shardings = jax.tree.leaves(param_shardings(params, mesh, config))
    leaves = jax.tree.leaves(params)
    used = {s.spec for x, s in zip(leaves, shardings, strict=True) if x.ndim > 1}
    assert used == set(family_of(config).shardings.values())


def test_a_family_is_known_by_its_config():
    names = {
        family_of(kind()).name
        for kind in (T5Config, BertConfig, MPNetConfig, ModernBertConfig, Qwen3Config)
    }
    assert names == {"T5", "BERT", "MPNet", "ModernBERT", "Qwen3"}


def test_hidden_states_in_bfloat16_round_and_no_more(family, packed):
    config, _, params = family
    ids, segments, _ = packed
    half = dataclasses.replace(config, compute_dtype="bfloat16")
    exact, in_float32, in_bfloat16 = (
        embed(of, PoolingConfig(), params, ids, segments, 5)
        for of in (config, half, dataclasses.replace(half, residual_dtype="bfloat16"))
    )
    assert in_bfloat16.dtype == jnp.float32
    errors = [float(jnp.linalg.norm(z - exact)) for z in (in_float32, in_bfloat16)]
    assert 0 < errors[0] < errors[1] < 8 * errors[0]
