"""Runs a model over any number of tokenised texts, in packed rows of a few fixed shapes."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from itertools import chain, islice
from typing import Any, NamedTuple, TypeVar

import jax
import numpy as np
from jax.sharding import Mesh

from jina_jax.devices.mesh import on_host, put, replicated, split_first_axis
from jina_jax.feed.packing import fill, place
from jina_jax.model.family import Execution

_SHORTEST_ROW = 64
_TOKENS_PER_SLOT = 4

T = TypeVar("T")


class Tokens(NamedTuple):
    """N tokenised texts, one after another."""

    channels: tuple[np.ndarray, ...]
    """int32 [T] each, a number per token: token ids first, then what else the model takes."""
    length_N: np.ndarray
    """Tokens of each text, 1 or more."""

    @classmethod
    def of(cls, *columns: Sequence[Sequence[int]]) -> "Tokens":
        """Joins the lists of N texts; a column is a channel."""
        length_N = np.array([len(numbers) for numbers in columns[0]], np.int64)
        total = int(length_N.sum())
        return cls(
            tuple(np.fromiter(chain.from_iterable(c), np.int32, total) for c in columns), length_N
        )


class RowShape(NamedTuple):
    """A shape that the model is compiled for."""

    row_tokens: int
    texts_per_row: int
    batch_rows: int
    """Most rows of a batch; rounded up to a multiple of the devices."""


EncodeRows = Callable[..., jax.Array]
"""(params, segments_RL, *channels_RL, texts_per_row=S) → [R, S] or [R, S, D]."""


class PackedEncoder:
    """Packs texts into rows, runs the rows over a mesh, and puts the results back in order.

    A text is packed with texts of its own size, in the shortest rows that hold it: attention costs
    the square of the row. Rows lie on the first axis, divided over the devices.
    """

    def __init__(
        self, encode_rows: EncodeRows, params: Any, shapes: Sequence[RowShape], mesh: Mesh
    ) -> None:
        """Puts the parameters on the mesh.

        Args:
          encode_rows: one number or vector per slot of each row.
          params: first argument of `encode_rows`.
          shapes: with increasing row_tokens; the last holds the longest text.
          mesh: over which rows are divided.
        """
        self.mesh, self.shapes = mesh, shapes
        self.use(params)
        self._rows = split_first_axis(mesh)
        # Rows are independent: each device runs the program of its own rows, also where a loop
        # over rows would otherwise gather those of all devices.
        self._encode_rows = jax.jit(
            partial(_on_each_device, encode_rows, mesh), static_argnames="texts_per_row"
        )

    def use(self, params: Any) -> None:
        """Puts other parameters of the same shapes on the mesh."""
        self.params = jax.device_put(params, replicated(self.mesh))

    def stream(
        self, texts: Iterable[T], tokenise: Callable[[list[T]], Tokens], block: int
    ) -> Iterator[np.ndarray]:
        """Encodes texts as they come; a thread tokenises the next block meanwhile.

        Args:
          texts: any number; two blocks are read ahead at most.
          tokenise: gives the tokens of a block, at most the longest row for each text.
          block: texts that are packed together.
        Returns: an iterator over float32 [n] or [n, D], block by block in the order of the texts. A
          result depends on the other texts of its block by rounding alone.
        """
        iterator = iter(texts)
        blocks = iter(lambda: list(islice(iterator, block)), [])
        for tokens in _one_ahead(map(tokenise, blocks)):
            parts = list(self._encode(tokens))
            result_N = np.empty((len(tokens.length_N), *parts[0][1].shape[1:]), np.float32)
            for index_N, part_N in parts:
                result_N[index_N] = part_N
            yield result_N

    def _encode(self, tokens: Tokens) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Pairs of (which texts, their results), every text once.

        A batch is handed out when the next is under way, so that device and host work at once.
        """
        pending: tuple[np.ndarray, np.ndarray, jax.Array] | None = None
        shorter = 0
        longest = tokens.length_N.max(initial=1)
        assert longest <= self.shapes[-1].row_tokens, f"a text has {longest} tokens"
        for shape in self.shapes:
            chosen_N = np.flatnonzero(
                (shorter < tokens.length_N) & (tokens.length_N <= shape.row_tokens)
            )
            shorter = shape.row_tokens
            for batch in self._batches(tokens, chosen_N, shape) if len(chosen_N) else ():
                if pending is not None:
                    yield _result(*pending)
                pending = batch
        if pending is not None:
            yield _result(*pending)

    def _batches(
        self, tokens: Tokens, chosen_N: np.ndarray, shape: RowShape
    ) -> Iterator[tuple[np.ndarray, np.ndarray, jax.Array]]:
        row_tokens, texts_per_row, _ = shape
        start_N = np.cumsum(tokens.length_N) - tokens.length_N
        length_N = tokens.length_N[chosen_N]
        placement = place(length_N, row_tokens=row_tokens, texts_per_row=texts_per_row)
        filled = [
            fill(
                channel_T, start_N[chosen_N], length_N, placement,
                num_rows=placement.num_rows, row_tokens=row_tokens,
            )
            for channel_T in tokens.channels
        ]  # fmt: skip
        arrays = [filled[0][1], *(channel_RL for channel_RL, _ in filled)]
        batch_rows = -(-shape.batch_rows // self.mesh.size) * self.mesh.size
        for first in range(0, placement.num_rows, batch_rows):
            part = slice(first, first + batch_rows)
            of_part_N = (placement.row_N >= first) & (placement.row_N < first + batch_rows)
            slot_N = (placement.row_N - first) * texts_per_row + placement.slot_N
            on_mesh = [put(self._pad(x[part], batch_rows), self._rows) for x in arrays]
            result = self._encode_rows(self.params, *on_mesh, texts_per_row=texts_per_row)
            yield chosen_N[of_part_N], slot_N[of_part_N], result

    def _pad(self, x_RL: np.ndarray, batch_rows: int) -> np.ndarray:
        """Adds rows up to a power of two of rows per device, so that few shapes are compiled."""
        rows = self.mesh.size
        while rows < len(x_RL):
            rows *= 2
        rows = min(rows, batch_rows)
        return np.pad(x_RL, ((0, rows - len(x_RL)), (0, 0)))


def _on_each_device(
    encode_rows: EncodeRows, mesh: Mesh, params: Any, *arrays_RL: jax.Array, texts_per_row: int
) -> jax.Array:
    rows = split_first_axis(mesh).spec
    return jax.shard_map(
        partial(encode_rows, texts_per_row=texts_per_row),
        mesh=mesh,
        in_specs=(replicated(mesh).spec, *[rows] * len(arrays_RL)),
        out_specs=rows,
    )(params, *arrays_RL)


def _one_ahead(items: Iterator[Tokens]) -> Iterator[Tokens]:
    """Makes the next item in a thread while the caller works on this one."""
    with ThreadPoolExecutor(1) as thread:
        coming: Future[Tokens | None] = thread.submit(next, items, None)
        while (item := coming.result()) is not None:
            coming = thread.submit(next, items, None)
            yield item


def inference_execution(mesh: Mesh) -> Execution:
    """How layers are run fastest without a backward pass on the devices of a mesh."""
    is_cpu = mesh.devices.flat[0].platform == "cpu"
    return Execution(kernel="by_row" if is_cpu else "at_once")


def row_shapes(max_tokens: int, batch_rows: int) -> list[RowShape]:
    """The rows that an encoder is compiled for.

    Most texts are far shorter than the limit; with short rows attention sees little but them.

    Args:
      max_tokens: of the longest text.
      batch_rows: of a batch.
    Example: rows of 64, 128 and 256 tokens for texts of up to 200.
    """
    lengths = [_SHORTEST_ROW]
    while lengths[-1] < max_tokens:
        lengths.append(lengths[-1] * 2)
    return [RowShape(n, n // _TOKENS_PER_SLOT, batch_rows) for n in lengths]


def _result(
    index_N: np.ndarray, slot_N: np.ndarray, result: jax.Array
) -> tuple[np.ndarray, np.ndarray]:
    host = on_host(result)
    return index_N, host.reshape(-1, *host.shape[2:])[slot_N]
