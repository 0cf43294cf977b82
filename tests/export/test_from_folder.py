"""Models that others wrote, as runs: nothing of them changes on the way in and out."""

import json
import shutil

import jax
import numpy as np
import pytest
import safetensors.numpy
import torch
import transformers
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Normalize, Pooling, Transformer

from jina_jax.checkpoint.checkpoints import load_checkpoint
from jina_jax.cli.main import main
from jina_jax.config import TokenizerConfig
from jina_jax.errors import UserError
from jina_jax.export.from_folder import import_folder
from jina_jax.inference.embedder import Embedder
from jina_jax.text.tokenizer import build_tokenizer, load_tokenizer

TEXTS = [
    "hello world", "", "  double  spaces\nand a line", "ﬁne ünïcode", "<extra_id_3> <pad> x",
    "a text of more tokens than the model takes " * 9,
]  # fmt: skip
MAX_TOKENS = 40


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """A small random T5 as sentence-transformers saves it."""
    folder = tmp_path_factory.mktemp("written")
    corpus = [*(json.__doc__ or "").splitlines(), "hello wörld of texts", "ünïcode"]
    build_tokenizer(TokenizerConfig("train", vocab_size=100), iter(corpus), folder)
    torch.manual_seed(0)
    shape = transformers.T5Config(
        vocab_size=104, d_model=24, d_kv=8, d_ff=48, num_layers=2, num_heads=3
    )
    transformers.T5EncoderModel(shape).save_pretrained(folder)
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_file=str(folder / "tokenizer.json"),
        eos_token="</s>", pad_token="<pad>", unk_token="<unk>",
    )  # fmt: skip
    tokenizer.save_pretrained(folder)
    first = Transformer(str(folder), max_seq_length=MAX_TOKENS)
    model = SentenceTransformer(modules=[first, Pooling(24, "mean"), Normalize()], device="cpu")
    model.save(str(folder / "model"))
    return folder / "model"


def tensors(folder):
    return safetensors.numpy.load_file(folder / "model.safetensors")


def test_an_imported_model_gives_the_embeddings_of_sentence_transformers(written, tmp_path):
    assert not (written / "spiece.model").exists()  # transformers 5 writes tokenizer.json alone
    config = import_folder(str(written), tmp_path / "run")
    assert config.feed.query_tokens == MAX_TOKENS
    theirs = SentenceTransformer(str(written), device="cpu").encode(TEXTS)
    np.testing.assert_allclose(Embedder.load(tmp_path / "run").encode(TEXTS), theirs, atol=1e-6)


def test_import_export_import_is_bit_identical(written, tmp_path):
    once, twice = tmp_path / "once", tmp_path / "twice"
    assert main(["import", str(written), str(once)]) == 0
    assert main(["export", str(once)]) == 0
    assert main(["import", str(once / "export"), str(twice)]) == 0
    params = [load_checkpoint(run).params for run in (once, twice)]
    for a, b in zip(*map(jax.tree.leaves, params), strict=True):
        assert np.array_equal(a, b)
    before, after = tensors(written), tensors(once / "export")
    assert all(np.array_equal(before[name], after[name]) for name in after)
    card = (once / "export" / "README.md").read_text()
    assert f"Imported from `{written.name}`" in card and "steps" not in card
    assert str(written.parent) not in card
    for name in ("spiece.model", "tokenizer.json"):
        assert (once / "tokenizer" / name).read_bytes() == (twice / "tokenizer" / name).read_bytes()


def test_an_imported_run_is_a_start_and_not_a_training(written, tmp_path, capsys):
    import_folder(str(written), tmp_path / "run")
    assert main(["show-config", str(tmp_path / "run")]) == 0
    assert json.loads(capsys.readouterr().out)["model"]["d_model"] == 24
    with pytest.raises(UserError, match="is there already"):
        import_folder(str(written), tmp_path / "run")


def test_a_spiece_model_made_from_a_tokenizer_encodes_alike(written, tmp_path):
    import_folder(str(written), tmp_path / "run")
    ours = load_tokenizer(tmp_path / "run" / "tokenizer")
    theirs = transformers.AutoTokenizer.from_pretrained(written)
    for text in TEXTS:
        assert ours.encode(text).ids == theirs(text, truncation=False)["input_ids"], text


CASES = {
    "1_Pooling/config.json": (
        {"embedding_dimension": 24, "pooling_mode": "max"}, "pools by max;",
    ),
    "modules.json": (
        [{"idx": 0, "name": "0", "path": "", "type": "evil.module.Dense"}], "evil.module.Dense",
    ),
    "config.json": ({"model_type": "gpt2"}, "gpt2"),
    "tokenizer.json": ({"model": {"type": "BPE"}}, "unigram"),
}  # fmt: skip


@pytest.mark.parametrize("file", CASES)
def test_another_kind_of_model_is_refused_and_nothing_is_left(written, tmp_path, file):
    content, message = CASES[file]
    folder = tmp_path / "model"
    shutil.copytree(written, folder)
    (folder / file).write_text(json.dumps(content))
    with pytest.raises(UserError, match=message):
        import_folder(str(folder), tmp_path / "run")
    assert [p.name for p in tmp_path.iterdir()] == ["model"]


def test_old_names_of_pooling_are_read_and_others_refused(written, tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(written, folder)
    old = {"word_embedding_dimension": 24, "pooling_mode_cls_token": False}
    path = folder / "1_Pooling" / "config.json"
    path.write_text(json.dumps(old | {"pooling_mode_mean_tokens": True}))
    import_folder(str(folder), tmp_path / "run")
    path.write_text(json.dumps(old | {"pooling_mode_max_tokens": True}))
    with pytest.raises(UserError, match="pools by max;"):
        import_folder(str(folder), tmp_path / "other")
