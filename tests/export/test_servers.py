"""What text-embeddings-inference asks of a folder, as its sources read one (July 2026: router's
ModelConfig, PoolConfig and STConfig, backends' ModuleType, and the Config of each model in candle).
"""

import json
import shutil

import pytest
from safetensors import safe_open

from jina_jax.config.files import read_run
from jina_jax.export.from_folder import import_folder
from jina_jax.export.run import export
from tests.export.test_families import SHAPES, family_folder, write_modules

_SIZES = {
    "vocab_size": int, "hidden_size": int, "num_hidden_layers": int, "num_attention_heads": int,
    "intermediate_size": int, "max_position_embeddings": int,
}  # fmt: skip
_BERT = _SIZES | {
    "hidden_act": str, "hidden_dropout_prob": float, "type_vocab_size": int,
    "initializer_range": float, "layer_norm_eps": float, "pad_token_id": int,
}  # fmt: skip
REQUIRED = {
    "bert": _BERT,
    "roberta": _BERT,
    "mpnet": _SIZES | {
        "hidden_act": str, "hidden_dropout_prob": float, "attention_probs_dropout_prob": float,
        "initializer_range": float, "layer_norm_eps": float, "relative_attention_num_buckets": int,
    },
    "modernbert": _SIZES | {
        "hidden_activation": str, "initializer_range": float, "initializer_cutoff_factor": float,
        "norm_eps": float, "norm_bias": bool, "pad_token_id": int, "eos_token_id": int,
        "bos_token_id": int, "cls_token_id": int, "sep_token_id": int, "global_rope_theta": float,
        "attention_bias": bool, "attention_dropout": float, "global_attn_every_n_layers": int,
        "local_attention": int, "local_rope_theta": float, "classifier_activation": str,
    },
    "qwen3": _SIZES | {
        "attention_bias": bool, "num_key_value_heads": int, "hidden_act": str,
        "rms_norm_eps": float, "use_sliding_window": bool, "eos_token_id": int,
    },
}  # fmt: skip
"""Fields of config.json without which a model of the family is not served."""
TENSORS = {
    "bert": "embeddings.word_embeddings.weight",
    "roberta": "embeddings.word_embeddings.weight",
    "mpnet": "embeddings.word_embeddings.weight",
    "modernbert": "embeddings.tok_embeddings.weight",
    "qwen3": "embed_tokens.weight",
}
"""By which a server finds the prefix of the others."""
ACTIVATIONS = ("gelu", "gelu_new", "relu", "silu", "swiglu")


@pytest.mark.parametrize("family", REQUIRED)
def test_an_exported_folder_has_what_the_server_reads(family, sentence_folder, tmp_path):
    pooling = "lasttoken" if family == "qwen3" else "mean"
    if family == "bert":
        shutil.copytree(sentence_folder, tmp_path / "model")
        write_modules(tmp_path / "model", pooling, 100)
    else:
        family_folder(tmp_path / "model", SHAPES[family], pooling)
    import_folder(str(tmp_path / "model"), tmp_path / "run")
    folder = export(read_run(tmp_path / "run"))

    config = json.loads((folder / "config.json").read_text())
    assert config["model_type"] == family
    assert all(isinstance(name, str) for name in config["architectures"])
    # Otherwise it is taken for a classifier.
    assert not any(name.endswith("Classification") for name in config["architectures"])
    for name, kind in REQUIRED[family].items():
        # Serde takes a whole number for a float, and no float for a whole number.
        kinds = (int, float) if kind is float else (kind,)
        assert type(config[name]) in kinds, f"{name}: {config.get(name)!r}"
    activation = config.get("hidden_act") or config["hidden_activation"]
    assert activation in ACTIVATIONS
    if family == "qwen3":
        assert type(config.get("rope_theta", config.get("rope_parameters"))) in (int, float, dict)

    flags = json.loads((folder / "1_Pooling" / "config.json").read_text())
    wanted = {"mean": "pooling_mode_mean_tokens", "lasttoken": "pooling_mode_lasttoken"}[pooling]
    names = ("pooling_mode_cls_token", "pooling_mode_mean_tokens", "pooling_mode_lasttoken")
    assert [name for name in names if flags[name]] == [wanted]
    limits = json.loads((folder / "sentence_bert_config.json").read_text())
    assert type(limits["max_seq_length"]) is int and limits["max_seq_length"] > 0
    prompts = json.loads((folder / "config_sentence_transformers.json").read_text())["prompts"]
    assert all(isinstance(text, str) for text in prompts.values())
    kinds = {module["type"] for module in json.loads((folder / "modules.json").read_text())}
    assert kinds <= {
        f"sentence_transformers.models.{k}"
        for k in ("Transformer", "Pooling", "Dense", "Normalize")
    }
    assert (folder / "tokenizer.json").is_file()
    with safe_open(folder / "model.safetensors", "numpy") as tensors:
        assert TENSORS[family] in tensors.keys()  # noqa: SIM118  It has no `in`.
