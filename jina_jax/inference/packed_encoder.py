"""Runs a model over any number of tokenised texts, in packed rows of a few fixed shapes."""

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from itertools import chain
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from jina_jax.config import ModelConfig
from jina_jax.devices.mesh import (
    of_this_process,
    put,
    replicated,
    split_first_axis,
    whole_on_each,
)
from jina_jax.feed.packing import Placement, fill, place
from jina_jax.inference.shares import Encoded, Round, Share, part_texts, rounds
from jina_jax.model.attention import chosen_kernel
from jina_jax.model.family import Execution

_SHORTEST_ROW = 64
_TOKENS_PER_SLOT = 4


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
    the square of the row. Rows lie on the first axis, divided over the devices of this process.
    """

    def __init__(
        self,
        encode_rows: EncodeRows,
        params: Any,
        shapes: Sequence[RowShape],
        mesh: Mesh,
        *,
        width: tuple[int, ...] = (),
    ) -> None:
        """Puts the parameters on the devices of this process.

        Args:
          encode_rows: one number or vector per slot of each row.
          params: first argument of `encode_rows`.
          shapes: with increasing row_tokens; the last holds the longest text.
          mesh: whose processes share the texts, and over whose devices rows are divided.
          width: (D,) where `encode_rows` gives vectors.
        """
        self.share, self._of_all, self.mesh = Share.of(mesh), mesh, of_this_process(mesh)
        self.shapes, self._width = shapes, width
        self.use(params)
        self._rows = split_first_axis(self.mesh)
        # Rows are independent: each device runs the program of its own rows, also where a loop
        # over rows would otherwise gather those of all devices.
        self._encode_rows = jax.jit(
            partial(_on_each_device, encode_rows, self.mesh), static_argnames="texts_per_row"
        )

    def use(self, params: Any) -> None:
        """Puts other parameters of the same shapes on the devices; all processes call it."""
        self.params = whole_on_each(params, self._of_all)

    def stream(
        self, texts: Iterable[Any], tokenise: Callable[[list[Any]], Tokens], block: int
    ) -> Iterator[Encoded]:
        """Encodes this process's texts as they come; a thread tokenises the next block meanwhile.

        Args:
          texts: any number, the same in every process; two rounds are read ahead at most.
          tokenise: gives the tokens of a block, at most the longest row for each text.
          block: texts of a process in a round.
        Returns: an iterator over the rounds. A result depends on the other texts of its part by
          rounding alone.
        """
        own = rounds(texts, self.share, block)
        tokenised = ((one, tokenise(one.texts) if one.texts else None) for one in own)
        for (_, index_N, end), tokens in _one_ahead(tokenised):
            result_N = np.empty((len(index_N), *self._width), np.float32)
            for where_N, part_N in () if tokens is None else self._encode(tokens, block):
                result_N[where_N] = part_N
            yield Encoded(index_N, result_N, end)

    def _encode(self, tokens: Tokens, block: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
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
            of_part_N = chosen_N // part_texts(block)
            batches = self._batches(tokens, chosen_N, of_part_N, shape)
            for batch in batches if len(chosen_N) else ():
                if pending is not None:
                    yield _result(*pending)
                pending = batch
        if pending is not None:
            yield _result(*pending)

    def _batches(
        self, tokens: Tokens, chosen_N: np.ndarray, of_part_N: np.ndarray, shape: RowShape
    ) -> Iterator[tuple[np.ndarray, np.ndarray, jax.Array]]:
        row_tokens, texts_per_row, _ = shape
        start_N = np.cumsum(tokens.length_N) - tokens.length_N
        length_N = tokens.length_N[chosen_N]
        placement = _by_part(length_N, of_part_N, row_tokens, texts_per_row)
        filled = [
            fill(channel_T, start_N[chosen_N], length_N, placement, row_tokens=row_tokens)
            for channel_T in tokens.channels
        ]
        arrays = [filled[0][1], *(channel_RL for channel_RL, _ in filled)]
        batch_rows = -(-shape.batch_rows // self.mesh.size) * self.mesh.size
        for first in range(0, placement.num_rows, batch_rows):
            part = slice(first, first + batch_rows)
            of_batch_N = (placement.row_N >= first) & (placement.row_N < first + batch_rows)
            slot_N = (placement.row_N - first) * texts_per_row + placement.slot_N
            on_mesh = [put(self._pad(x[part], batch_rows), self._rows) for x in arrays]
            result = self._encode_rows(self.params, *on_mesh, texts_per_row=texts_per_row)
            yield chosen_N[of_batch_N], slot_N[of_batch_N], result

    def _pad(self, x_RL: np.ndarray, batch_rows: int) -> np.ndarray:
        """Adds rows up to a power of two of rows per device, so that few shapes are compiled."""
        rows = self.mesh.size
        while rows < len(x_RL):
            rows *= 2
        rows = min(rows, batch_rows)
        return np.pad(x_RL, ((0, rows - len(x_RL)), (0, 0)))


def _by_part(
    length_N: np.ndarray, of_part_N: np.ndarray, row_tokens: int, texts_per_row: int
) -> Placement:
    """Places the texts of each part in rows of their own; parts ascend."""
    rows, found = 0, []
    for length_M in np.split(length_N, np.flatnonzero(np.diff(of_part_N)) + 1):
        one = place(length_M, row_tokens=row_tokens, texts_per_row=texts_per_row)
        found.append(dataclasses.replace(one, row_N=one.row_N + rows))
        rows += one.num_rows
    row_N, slot_N, start_N = (
        np.concatenate([getattr(one, name) for one in found])
        for name in ("row_N", "slot_N", "start_N")
    )
    return Placement(row_N, slot_N, start_N, rows)


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


def _one_ahead(
    items: Iterator[tuple[Round, Tokens | None]],
) -> Iterator[tuple[Round, Tokens | None]]:
    """Makes the next item in a thread while the caller works on this one."""
    with ThreadPoolExecutor(1) as thread:
        coming: Future[tuple[Round, Tokens | None] | None] = thread.submit(next, items, None)
        while (item := coming.result()) is not None:
            coming = thread.submit(next, items, None)
            yield item


def inference_execution(mesh: Mesh, model: ModelConfig, max_tokens: int) -> Execution:
    """How layers are run fastest without a backward pass on the devices of a mesh."""
    device = mesh.devices.flat[0]
    kernel, _ = chosen_kernel(
        "auto", device.platform, model, max_tokens, device_kind=device.device_kind
    )
    return Execution(kernel=kernel)


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
    host = np.asarray(result)
    return index_N, host.reshape(-1, *host.shape[2:])[slot_N]
