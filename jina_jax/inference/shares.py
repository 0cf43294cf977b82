"""How the processes of a run share the texts that a model encodes.

Texts are numbered as they come. `PART_TEXTS` in a row are a part, which is packed into rows of its
own; part i is of process i mod N. So rows do not depend on the number of processes, and embeddings
only by the rounding of a batch with more or fewer rows. Every process reads all texts, and
tokenises, packs and encodes its own. Rounds are as many for each, so that what they have found may
be gathered round by round.
"""

from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Float32

from jina_jax.devices.distributed import gathered

PART_TEXTS = 128
"""Texts that are packed together: few enough for a thousand to be shared, enough to fill rows."""


class Share(NamedTuple):
    """Which of all texts are this process's."""

    rank: int
    processes: int

    @classmethod
    def of(cls, mesh: Mesh) -> "Share":
        """Of this process among those whose devices a mesh has: all of a run, or it alone."""
        is_alone = {d.process_index for d in mesh.devices.flat} == {jax.process_index()}
        return cls(0, 1) if is_alone else cls(jax.process_index(), jax.process_count())


class Round(NamedTuple):
    """The texts of this process in a round."""

    texts: list[Any]
    index_N: np.ndarray
    """int64, the number of each among all texts."""
    end: int
    """Texts of all processes up to the end of the round."""


class Encoded(NamedTuple):
    """What a model made of this process's texts in a round."""

    index_N: np.ndarray
    """int64, the number of each among all texts."""
    z_ND: np.ndarray
    """float32 [N, D], or [N] of a model that gives numbers."""
    end: int
    """Texts of all processes up to the end of the round."""


def part_texts(block: int) -> int:
    """Texts of a part, where a process takes `block` in a round.

    Raises: AssertionError for a block that is no multiple of `PART_TEXTS`, nor smaller.
    """
    part = min(PART_TEXTS, block)
    assert block % part == 0
    return part


def rounds(texts: Iterable[Any], share: Share, block: int) -> Iterator[Round]:
    """This process's texts, at most `block` in a round.

    Args:
      texts: the same in every process. No more of the others' than a part is held.
      share: of this process.
      block: a multiple of `PART_TEXTS`, or smaller.
    Returns: as many rounds in every process. In the last a process may have no texts.
    Example: parts 0, 1, 2 of 2 processes at a block of one part: in the first round each has one,
      in the second the first has part 2 and the other none.
    """
    iterator, part, first = iter(texts), part_texts(block), 0
    while True:
        own: list[Any] = []
        numbers = [np.zeros(0, np.int64)]
        end = first
        for number in range(share.processes * (block // part)):
            some = list(islice(iterator, part))
            if number % share.processes == share.rank:
                own += some
                numbers.append(np.arange(end, end + len(some)))
            end += len(some)
            if len(some) < part:
                break
        if end == first:
            return
        yield Round(own, np.concatenate(numbers), end)
        first = end


def in_order(own: Iterable[Encoded], share: Share, block: int) -> Iterator[np.ndarray]:
    """What all processes encoded, gathered in each of them.

    Args:
      own: of this process, from `rounds` with the same share and block.
      share: of this process.
      block: texts of a process in a round.
    Returns: an iterator over float32 [block, D] and a shorter rest, in the order of the texts.
    """
    if share.processes == 1:
        yield from (found.z_ND for found in own)
        return
    held: list[np.ndarray] = []
    rows = 0
    for z_ND in _gathered(own, share, part_texts(block)):
        held.append(z_ND)
        rows += len(z_ND)
        while rows >= block:
            joined = np.concatenate(held)
            yield joined[:block]
            held, rows = [joined[block:]], rows - block
    if rows:
        yield np.concatenate(held)


def _gathered(own: Iterable[Encoded], share: Share, part: int) -> Iterator[np.ndarray]:
    first = 0
    for found in own:
        size, wide = found.end - first, found.z_ND.shape[1:]
        first = found.end
        # Part i of a round stands at place i // N of process i mod N.
        most = -(-size // (part * share.processes))
        padded_JND = np.zeros((most, part, *wide), np.float32)
        padded_JND.reshape(-1, *wide)[: len(found.z_ND)] = found.z_ND
        for z_PJND in gathered(padded_JND):
            z_ND = z_PJND.swapaxes(0, 1).reshape(-1, *wide)[:size]
            size -= len(z_ND)
            yield z_ND


def common_ranges(z_ND: Float32[np.ndarray, "N D"], share: Share) -> Float32[np.ndarray, "2 D"]:
    """The least and the largest value of each dimension over the rows of all processes; one has
    some.
    """
    extremes = (z_ND.min(axis=0, initial=np.inf), -z_ND.max(axis=0, initial=-np.inf))
    negated_2D = np.stack(extremes).astype(np.float32)
    if share.processes > 1:
        negated_2D = next(gathered(negated_2D[None])).min(axis=0)[0]
    return np.stack([negated_2D[0], -negated_2D[1]])
