"""Changes to a valid input, of bytes or of the JSON value within."""

import json
import random
from collections.abc import Callable

from tests.fuzz.corpus import REPACKED

_ODD_VALUES = (
    None, True, False, 0, -1, 1, 2**31, 2**63, -(2**64), 10**30, 0.5, -0.0, 1e-320, 1e308, "", "x",
    "..", "../x", "/etc/passwd", "a\0b", "é", "\ud800", "x" * 5000, [], {}, [[]], [None], {"": {}},
    [1] * 300, "google-t5/t5-small", "NaN", {"a": 1, "b": [2]}, "jina_jax.config.RunConfig",
)  # fmt: skip
_ODD_BYTES = (
    b"\0", b"\xff", b"\n", b"\r", b'"', b"\\", b",", b"{", b"}", b"[", b"\xef\xbb\xbf", b"\xed\xa0",
    b"\xff\xff\xff\xff", b"\0\0\0\0\0\0\0\x80", b"\xff\xff\xff\xff\xff\xff\xff\x7f", b"NaN",
    b"1e999", b"-Infinity", b"[" * 3000, b"1" * 5000,
)  # fmt: skip


def mutated(
    data: bytes, target: str, rng: random.Random, change: Callable[[bytes], bytes]
) -> bytes:
    """A changed input.

    Args:
      data: a valid or an already changed one.
      target: its format.
      rng: decides.
      change: of bytes.
    """
    try:
        if target in REPACKED and rng.random() < 0.5:
            unpack, pack = REPACKED[target]
            return pack(change(unpack(data)))
        if rng.random() < 0.5:
            return _in_json(data, rng)
    except Exception:
        return change(data)  # It is no longer of its format.
    return change(data)


def change_bytes(data: bytes, rng: random.Random) -> bytes:
    """Flips, cuts, doubles or puts in a few bytes."""
    changed = bytearray(data)
    for _ in range(rng.randint(1, 4)):
        at, length = rng.randint(0, len(changed)), rng.choice((1, 1, 2, 4, 8, 64, 1000))
        kind = rng.randrange(6)
        if kind == 0 and at < len(changed):
            changed[at] ^= 1 << rng.randrange(8)
        elif kind == 1:
            changed[at : at + length] = b""
        elif kind == 2:
            changed[at:at] = changed[at : at + length]
        elif kind == 3:
            changed[at : at + length] = rng.randbytes(length)
        elif kind == 4:
            changed[at:at] = rng.choice(_ODD_BYTES)
        else:
            other = rng.randint(0, len(changed))
            changed[at : at + length] = changed[other : other + length]
    return bytes(changed)


def _in_json(data: bytes, rng: random.Random) -> bytes:
    """Changes a value, key or item of the JSON in the data: a whole one, or a line's."""
    head, body, tail = b"", data, b""
    if data[8:9] == b"{":  # The header of safetensors.
        size = int.from_bytes(data[:8], "little")
        body, tail = data[8 : 8 + size], data[8 + size :]
        text = _changed(json.loads(body), rng).encode("utf-8", "surrogatepass")
        return (len(text) + rng.choice((0, 0, 0, 1, -1))).to_bytes(8, "little") + text + tail
    if b"\n" in data.strip():
        lines = data.split(b"\n")
        at = rng.randrange(len(lines))
        try:
            text = _changed(json.loads(lines[at]), rng)
        except ValueError:
            text = _changed(json.loads(data), rng)
            return text.encode("utf-8", "surrogatepass")
        lines[at] = text.encode("utf-8", "surrogatepass")
        return b"\n".join(lines)
    return head + _changed(json.loads(body), rng).encode("utf-8", "surrogatepass")


def _changed(value: object, rng: random.Random) -> str:
    places: list[tuple[object, object]] = []
    waiting = [value]
    while waiting:
        inner = waiting.pop()
        if isinstance(inner, dict):
            places += [(inner, key) for key in inner]
            waiting += inner.values()
        elif isinstance(inner, list):
            places += [(inner, i) for i in range(min(len(inner), 50))]
            waiting += inner[:50]
    for _ in range(rng.randint(1, 3)):
        if not places:
            return json.dumps(rng.choice(_ODD_VALUES), ensure_ascii=rng.random() < 0.5)
        holder, key = rng.choice(places)
        _change_place(holder, key, rng, places)
    return json.dumps(value, ensure_ascii=rng.random() < 0.5)


def _change_place(holder: object, key: object, rng: random.Random, places: list) -> None:
    kind = rng.randrange(5)
    try:
        if kind == 0:
            del holder[key]  # type: ignore[attr-defined]
        elif kind == 1:
            other, at = rng.choice(places)
            holder[key] = json.loads(json.dumps(other[at]))  # type: ignore[index]
        elif kind == 2 and isinstance(holder, dict):
            holder[rng.choice(("", "x", f"{key}x", "auto_map"))] = holder.pop(key)
        elif kind == 3 and isinstance(holder, list):
            holder.append(rng.choice(_ODD_VALUES))
        else:
            holder[key] = rng.choice(_ODD_VALUES)  # type: ignore[index]
    except (KeyError, IndexError, TypeError):
        pass  # An earlier change took the place away.
