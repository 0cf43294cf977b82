"""Ways to make a model folder hostile, and the refusal that each must meet.

A way takes the folder, and a file that its payload would create if anything ran it.
"""

import json
import os
import pickle
import struct
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file, save_file

WEIGHTS = "model.safetensors"


class Payload:
    """Creates a file when it is unpickled."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return Path.touch, (Path(self.path),)


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
