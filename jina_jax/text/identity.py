"""The identity of a text: what makes two spellings the same text, and its hash."""

import unicodedata
from collections.abc import Iterable

import numpy as np
import pyarrow as pa
import xxhash

HASH_BYTES = 16
NO_TEXT = bytes(HASH_BYTES)
"""Stands where a record has no text: the hash of none."""
NORMALISE_VERSION = 1
"""Goes into the manifest; raise it when `normalise` changes what it returns for any text."""


def normalise(text: str) -> str:
    """Folds away what does not make a different text.

    Args:
      text: any text without lone surrogates.
    Returns: the text case folded, composed (Unicode NFC), with each run of whitespace a single
      space and none at the ends. Applying it twice changes nothing.
    Example: "  CAFÉ  au Lait " gives "café au lait", with either spelling of É.
    """
    if text.isascii():
        return " ".join(text.lower().split())
    # Unicode defines caseless matching on decomposed text (D145): folding can turn a combining
    # mark (U+0345) into a letter, which must come after the marks that precede it.
    folded = unicodedata.normalize("NFD", text).casefold()
    return " ".join(unicodedata.normalize("NFC", folded).split())


def text_hash(text: str) -> bytes:
    """Names a text: equal for texts that `normalise` to the same.

    Args:
      text: any text without lone surrogates.
    Returns: 16 bytes, xxh3-128 of the normalised text in UTF-8, most significant byte first.
    """
    return hash_normalised(normalise(text))


def hash_normalised(text: str) -> bytes:
    """`text_hash` of a text that already is normalised."""
    return xxhash.xxh3_128_digest(text.encode())


def normalise_all(texts: Iterable[str]) -> list[str]:
    """`normalise` of many texts."""
    # The call is saved where it costs as much as its work.
    return [" ".join(t.lower().split()) if t.isascii() else normalise(t) for t in texts]


def hash_words(*columns: pa.ChunkedArray | pa.Array) -> np.ndarray:
    """Hash columns beside each other as uint64 [N, 2 · columns], equal where the hashes are."""
    words = []
    for column in columns:
        array = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
        data = array.buffers()[1] or b""
        rows = slice(array.offset * HASH_BYTES, (array.offset + len(array)) * HASH_BYTES)
        words.append(np.frombuffer(data[rows], "<u8").reshape(-1, 2))
    return np.hstack(words)


def row_keys(words_Nx: np.ndarray) -> np.ndarray:
    """Each row of uint64 words as one value, which can be compared and ordered."""
    words_Nx = np.ascontiguousarray(words_Nx, np.uint64)
    return words_Nx.view(f"S{words_Nx.itemsize * words_Nx.shape[1]}").reshape(-1)


def find_keys(known_K: np.ndarray, wanted: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Looks values up.

    Args:
      known_K: ascending.
      wanted: of any shape.
    Returns: for each wanted value its place among the known ones, and whether it is there; where it
      is not, the place means nothing.
    """
    if not len(known_K):
        return np.zeros(wanted.shape, np.int64), np.zeros(wanted.shape, bool)
    place = np.minimum(np.searchsorted(known_K, wanted), len(known_K) - 1)
    return place, known_K[place] == wanted
