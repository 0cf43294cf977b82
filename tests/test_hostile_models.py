"""Model folders made by somebody who means harm: each is refused by name and nothing of it runs."""

import json
import os
import pickle
import shutil
import struct
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from jina_jax.cli import main
from jina_jax.errors import UserError
from jina_jax.evaluate.embedder import Embedder
from jina_jax.export.from_folder import import_folder
from jina_jax.mteb.model import open_model
from jina_jax.untrusted import inner_path, parse_json, read_json
from tests.evaluate.conftest import exported  # noqa: F401
from tests.score.conftest import sentence_folder  # noqa: F401

WEIGHTS = "model.safetensors"


class Payload:
    """Creates a file when it is unpickled."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return Path.touch, (Path(self.path),)


@pytest.fixture
def folder(exported, tmp_path):  # noqa: F811
    shutil.copytree(exported, tmp_path / "model")
    return tmp_path / "model"


@pytest.fixture
def ran(tmp_path):
    """What a payload would create; asserted absent after the test."""
    yield tmp_path / "the-payload-ran"
    assert not (tmp_path / "the-payload-ran").exists()


def change(path, **values):
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def header(folder, text):
    """Safetensors with this header and no more than 64 bytes of data."""
    (folder / WEIGHTS).write_bytes(struct.pack("<Q", len(text)) + text.encode() + bytes(64))


def tensor(shape, begin, end, dtype="F32"):
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


def pickled(folder, ran):
    (folder / WEIGHTS).unlink()
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(Payload(ran)))


def torch_saved(folder, ran):
    (folder / WEIGHTS).unlink()
    (folder / "weights.pt").write_bytes(pickle.dumps(Payload(ran)))


def pickle_by_another_name(folder, ran):
    (folder / WEIGHTS).write_bytes(pickle.dumps(Payload(ran)))


def auto_map(folder, ran):
    (folder / "modeling.py").write_text(f"open({str(ran)!r}, 'w')\nclass Model: pass\n")
    change(folder / "config.json", auto_map={"AutoModel": "modeling.Model"})


def trusting_limits(folder, ran):
    change(folder / "sentence_bert_config.json", model_args={"trust_remote_code": True})


def own_module(folder, ran):
    (folder / "own.py").write_text(f"open({str(ran)!r}, 'w')\nclass Pooling: pass\n")
    modules = json.loads((folder / "modules.json").read_text())
    modules[1]["type"] = "own.Pooling"
    (folder / "modules.json").write_text(json.dumps(modules))


def more_modules(folder, ran):
    modules = json.loads((folder / "modules.json").read_text())
    modules.append({"idx": 3, "path": "3_Dense", "type": "sentence_transformers.models.Dense"})
    (folder / "modules.json").write_text(json.dumps(modules))


def pooling_outside(path):
    def damage(folder, ran):
        (folder.parent / "config.json").write_text('{"pooling_mode_mean_tokens": true}')
        modules = json.loads((folder / "modules.json").read_text())
        modules[1]["path"] = path.format(folder.parent)
        (folder / "modules.json").write_text(json.dumps(modules))

    return damage


def link_outside(name):
    def damage(folder, ran):
        moved = folder.parent / "outside"
        (folder / name).rename(moved)
        (folder / name).symlink_to(moved)

    return damage


def endless_file(name):
    def damage(folder, ran):
        (folder / name).unlink()
        (folder / name).symlink_to("/dev/zero")

    return damage


def pipe(folder, ran):
    (folder / "config.json").unlink()
    os.mkfifo(folder / "config.json")


def large_json(folder, ran):
    with (folder / "config.json").open("a") as file:
        file.write(" " * (17 << 20))


def large_tokenizer(folder, ran):
    with (folder / "tokenizer.json").open("a") as file:
        file.write(" " * (17 << 20))


def deep_json(folder, ran):
    (folder / "config.json").write_text('{"a": ' + "[" * 100_000 + "]" * 100_000 + "}")


def key_twice(folder, ran):
    text = (folder / "config.json").read_text()
    (folder / "config.json").write_text('{"d_model": 99,' + text.lstrip().removeprefix("{"))


def tensor_twice(folder, ran):
    first, second = (json.dumps(tensor(shape, 0, 64)) for shape in ([16], [4, 4]))
    header(folder, f'{{"a": {first}, "a": {second}}}')


def index_outside(folder, ran):
    (folder / WEIGHTS).rename(folder.parent / "outside.safetensors")
    weight_map = {"weight_map": {"a": "../outside.safetensors"}}
    (folder / f"{WEIGHTS}.index.json").write_text(json.dumps(weight_map))


def not_a_number(folder, ran):
    tensors = load_file(folder / WEIGHTS)
    tensors["shared.weight"][3, 4] = np.nan
    save_file(tensors, folder / WEIGHTS)


def infinite_in_float32(folder, ran):
    tensors = {name: x.astype(np.float64) for name, x in load_file(folder / WEIGHTS).items()}
    tensors["shared.weight"][3, 4] = 1e300
    save_file(tensors, folder / WEIGHTS)


def other_shape(folder, ran):
    tensors = load_file(folder / WEIGHTS)
    tensors["shared.weight"] = tensors["shared.weight"].T.copy()
    save_file(tensors, folder / WEIGHTS)


def beyond_memory(folder, ran):
    """A sparse file: 4 TiB of zeros that take no space on the disk."""
    size = 1 << 42
    text = json.dumps({"a": tensor([size // 4], 0, size)})
    with (folder / WEIGHTS).open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text.encode())
        file.truncate(8 + len(text) + size)


def ids_without_embedding(folder, ran):
    config = json.loads((folder / "config.json").read_text())
    tensors = load_file(folder / WEIGHTS)
    tensors["shared.weight"] = tensors["shared.weight"][:20]
    save_file(tensors, folder / WEIGHTS)
    (folder / "config.json").write_text(json.dumps(config | {"vocab_size": 20}))


def lying_header(shape, begin, end, dtype="F32"):
    return lambda folder, ran: header(folder, json.dumps({"a": tensor(shape, begin, end, dtype)}))


CASES = {
    "pickled weights": (pickled, r"pytorch_model\.bin.*can run code.*save_pretrained"),
    "a .pt file": (torch_saved, r"weights\.pt.*can run code"),
    "a pickle by another name": (pickle_by_another_name, r"model\.safetensors is damaged"),
    "auto_map": (auto_map, r"config\.json asks for Python code.*auto_map"),
    "trust_remote_code": (trusting_limits, r"sentence_bert_config\.json.*trust_remote_code"),
    "a module of its own": (own_module, r"modules\.json has a module 'own\.Pooling'"),
    "a further module": (more_modules, r"modules\.json has the modules .*Dense"),
    "pooling in ..": (pooling_outside(".."), r"'\.\./config\.json' is no path within"),
    "pooling in an absolute path": (pooling_outside("{}"), "is no path within"),
    "config.json as a link": (link_outside("config.json"), "leads out of"),
    "weights as a link": (link_outside(WEIGHTS), "leads out of"),
    "a folder as a link": (link_outside("1_Pooling"), "leads out of"),
    "the tokenizer as a link": (link_outside("tokenizer.json"), "leads out of"),
    "config.json from /dev/zero": (endless_file("config.json"), "leads out of"),
    "a pipe": (pipe, r"config\.json cannot be read.*no regular file"),
    "large JSON": (large_json, r"config\.json cannot be read.*16,777,216 bytes"),
    "a large tokenizer": (large_tokenizer, r"tokenizer\.json cannot be read.*16,777,216 bytes"),
    "deep JSON": (deep_json, r"config\.json cannot be read.*nested too deeply"),
    "a key twice": (key_twice, r"config\.json.*'d_model' is there twice"),
    "a tensor twice": (tensor_twice, r"model\.safetensors.*'a' is there twice"),
    "an index out of the folder": (index_outside, r"names '\.\./outside\.safetensors'"),
    "NaN": (not_a_number, r"shared\.weight holds NaN"),
    "infinite once it is float32": (infinite_in_float32, r"shared\.weight holds NaN or infinite"),
    "another shape": (other_shape, r"shared\.weight has shape \(32, 64\), expected \(64, 32\)"),
    "more than the memory": (beyond_memory, r"holds 1,099,511,627,776 numbers.*GiB of memory"),
    "ids without embedding": (ids_without_embedding, "ids up to 37, but its model embeds 20"),
    "offsets beyond the file": (lying_header([64], 0, 256), r"model\.safetensors is damaged"),
    "offsets of another size": (lying_header([15], 0, 64), r"model\.safetensors is damaged"),
    "negative span": (lying_header([16], 64, 0), r"model\.safetensors is damaged"),
    "sizes that overflow": (lying_header([2**40, 2**40], 0, 64), r"model\.safetensors is damaged"),
    "an unknown type": (lying_header([16], 0, 64, "F31"), r"model\.safetensors is damaged"),
    "integers": (lying_header([16], 0, 64, "I32"), "a is I32, expected a float type"),
}  # fmt: skip
SHAPES = {
    "layers": ({"num_layers": 10**9}, r"num_layers=1000000000 .*1\.\.1000"),
    "no heads": ({"num_heads": 0}, r"num_heads=0 .* must lie in 1"),
    "vocabulary": ({"vocab_size": 10**15}, "vocab_size"),
    "text for a number": ({"d_model": "32"}, "d_model='32'"),
    "buckets": ({"relative_attention_num_buckets": 2}, "must divide by 4"),
    "epsilon": ({"layer_norm_epsilon": -1.0}, "layer_norm_epsilon"),
}


@pytest.mark.parametrize("case", CASES)
def test_a_hostile_folder_is_refused_by_name(folder, ran, case):
    damage, message = CASES[case]
    damage(folder, ran)
    with pytest.raises(UserError, match=message):
        Embedder.load(folder)


@pytest.mark.parametrize("case", [c for c in CASES if "tokenizer" not in c])
def test_the_import_refuses_it_too_and_leaves_nothing(folder, ran, case):
    damage, message = CASES[case]
    damage(folder, ran)
    before = {path.name for path in folder.parent.iterdir()}
    with pytest.raises(UserError, match=message):
        import_folder(str(folder), folder.parent / "run")
    assert {path.name for path in folder.parent.iterdir()} == before


@pytest.mark.parametrize("case", SHAPES)
def test_shapes_that_no_model_has(folder, case):
    values, message = SHAPES[case]
    change(folder / "config.json", **values)
    with pytest.raises(UserError, match=message):
        Embedder.load(folder)


def test_an_infinite_number_is_no_json(folder):
    text = (folder / "config.json").read_text().replace("1e-06", "1e999")
    (folder / "config.json").write_text(text)
    with pytest.raises(UserError, match="beyond the range"):
        Embedder.load(folder)


@pytest.mark.parametrize("verb", ["encode", "search", "import", "mteb"])
def test_every_verb_says_so_in_one_line_and_exits_with_2(folder, ran, verb, capsys):
    auto_map(folder, ran)
    texts = folder.parent / "texts.txt"
    texts.write_text("a text\n")
    after = {
        "encode": [str(texts), str(folder.parent / "out.npy")], "search": [str(texts), "a query"],
        "import": [str(folder.parent / "run")], "mteb": [],
    }[verb]  # fmt: skip
    assert main([verb, str(folder), *after]) == 2
    captured = capsys.readouterr()
    assert "auto_map" in captured.err and "Traceback" not in captured.err


def test_pickles_and_code_beside_safetensors_are_left_alone(folder, ran):
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(Payload(ran)))
    (folder / "modeling.py").write_text(f"open({str(ran)!r}, 'w')\n")
    (folder / "setup.py").write_text(f"open({str(ran)!r}, 'w')\n")
    assert Embedder.load(folder).encode(["a text"]).shape == (1, 32)


def test_links_within_the_hub_cache_are_followed(folder):
    cache = folder.parent / "models--x--y"
    snapshot = cache / "snapshots" / "0123"
    (cache / "blobs").mkdir(parents=True)
    for number, path in enumerate(p for p in folder.rglob("*") if p.is_file()):
        blob = path.rename(cache / "blobs" / str(number))
        link = snapshot / path.relative_to(folder)
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(os.path.relpath(blob, link.parent))
    assert Embedder.load(snapshot).encode(["a text"]).shape == (1, 32)


def test_a_bert_is_judged_alike(sentence_folder, tmp_path, ran):  # noqa: F811
    shutil.copytree(sentence_folder, tmp_path / "bert")
    auto_map(tmp_path / "bert", ran)
    with pytest.raises(UserError, match="auto_map"):
        open_model(tmp_path / "bert")


@pytest.mark.parametrize("name", ["", "/etc/passwd", "../x", "a/../../x", "a\0b", "..", "a\\..\\b"])
def test_names_that_lead_elsewhere(tmp_path, name):
    with pytest.raises(UserError, match="is no path within"):
        inner_path(tmp_path, name)


def test_a_circle_of_links_is_refused(tmp_path):
    (tmp_path / "a").symlink_to(tmp_path / "b")
    (tmp_path / "b").symlink_to(tmp_path / "a")
    with pytest.raises(UserError):
        read_json(inner_path(tmp_path, "a"))


@pytest.mark.parametrize(
    "text", ["NaN", "[-Infinity]", "1e999", '{"a": {"b": 1, "b": 1}}', "1" * 5000]
)
def test_json_that_is_none(text):
    with pytest.raises(ValueError):
        parse_json(text)


def test_an_own_run_may_have_an_infinite_setting():
    assert parse_json('{"clip_norm": Infinity}', finite=False) == {"clip_norm": float("inf")}
