"""The consistency filter: a pair's passage must be among the best of its query.

Keep pair i when fewer than `top_k` of the sampled passages other than its own text score above
s(q_i, p_i), the cosine of query and passage (Günther et al. 2023, arXiv 2307.11224: "among the top
two"). What is computed and cached is the rank, the number of passages above; top_k is applied to
it later, and can be changed without computing again.

A passage that was sampled with several queries counts each time.

Own text is recognised by its text hash and never by its score, so that copies of the passage in
the sample cannot outrank it. Yet two different texts can have one embedding (all-MiniLM-L6-v2
drops accents), the same tokens packed beside others come out about 1e-7 apart, and a product
inside a block is rounded otherwise than the sum that gives s(q_i, p_i). "Above" therefore means
above by more than `tie_tolerance`: an equal passage is not above, whatever the rounding.

Scores are products of a block of queries and a block of passages, compared and summed at once. No
more than one block exists on a device at a time, and nothing is sorted.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, PartitionSpec
from jaxtyping import Array, Bool, Float, Float32, Int, Int32, UInt64

from jina_jax.config import ConsistencyConfig
from jina_jax.devices.mesh import DATA, split_first_axis
from jina_jax.text.identity import find_keys, row_keys

_NOT_SAMPLED = -1
_PADDING = -2


class Sample(NamedTuple):
    """The passages that every pair of a source is compared with."""

    z_MD: np.ndarray
    """float32 unit vectors."""
    hash_Mx2: np.ndarray
    """uint64, the text hash of each passage."""


@functools.lru_cache
def _counter(mesh: Mesh, sample_block: int) -> Callable[..., jax.Array]:
    """Compiled once per mesh and block; see `_count_above`."""
    split, whole = PartitionSpec(DATA), PartitionSpec()
    count = jax.shard_map(
        functools.partial(_count_above, sample_block=sample_block),
        mesh=mesh,
        in_specs=(split, split, split, split, split, whole),
        out_specs=split,
    )
    return jax.jit(count)


def _count_above(
    q_ND: Float[Array, "N D"],
    p_ND: Float[Array, "N D"],
    identity_N: Int[Array, " N"],
    z_MD: Float[Array, "M D"],
    identity_M: Int[Array, " M"],
    tolerance: Float[Array, ""],
    *,
    sample_block: int,
) -> Int[Array, " N"]:
    """One device's part: all queries of the block against its own share of the sample.

    Args:
      q_ND: this device's queries.
      p_ND: their passages.
      identity_N: which sampled text the passage is, or _NOT_SAMPLED.
      z_MD: this device's passages, a multiple of `sample_block`.
      identity_M: which text each is, or _PADDING.
      tolerance: cosines this close are equal.
      sample_block: passages compared at once.
    Returns: int32, passages above for this device's queries, over the samples of all devices.
    """
    # Every device needs every query of the block against its share; they are few.
    own_N = jnp.sum(q_ND * p_ND, axis=-1) + tolerance
    q_ND, own_N, identity_N = (
        jax.lax.all_gather(x, DATA, axis=0, tiled=True) for x in (q_ND, own_N, identity_N)
    )

    def add_block(block: Array, count_N: Array) -> Array:
        part_MD = jax.lax.dynamic_slice_in_dim(z_MD, block * sample_block, sample_block)
        part_M = jax.lax.dynamic_slice_in_dim(identity_M, block * sample_block, sample_block)
        score_NM = jnp.einsum("nd,md->nm", q_ND, part_MD, precision=jax.lax.Precision.HIGHEST)
        is_other_NM = (part_M != _PADDING)[None, :] & (part_M[None, :] != identity_N[:, None])
        above_NM = (score_NM > own_N[:, None]) & is_other_NM
        return count_N + jnp.sum(above_NM, axis=1, dtype=jnp.int32)

    zero_N = jax.lax.pcast(jnp.zeros(len(q_ND), jnp.int32), DATA, to="varying")
    blocks = z_MD.shape[0] // sample_block
    count_N = jax.lax.fori_loop(0, blocks, add_block, zero_N)
    return jax.lax.psum_scatter(count_N, DATA, scatter_dimension=0, tiled=True)


class Ranker:
    """Holds a sample on the mesh and ranks any number of pairs against it.

    The sample lies divided over the devices: sample_size · D · 4 bytes in all, 1.5 GB for a million
    MiniLM passages. Besides, each device needs room for one block of
    query_block × sample_block scores.
    """

    def __init__(self, sample: Sample, config: ConsistencyConfig, mesh: Mesh) -> None:
        """Puts the sample on the devices.

        Args:
          sample: any number of passages.
          config: block sizes and tolerance.
          mesh: over which sample and queries are divided.
        """
        self._config, self._mesh = config, mesh
        self._query_block = -(-config.query_block // mesh.size) * mesh.size
        self._known, identity_M = np.unique(row_keys(sample.hash_Mx2), return_inverse=True)
        per_device = -(-len(sample.z_MD) // mesh.size)
        # A power of two, so that sources of many sizes share a few compiled shapes.
        self._sample_block = min(config.sample_block, max(1 << (per_device - 1).bit_length(), 128))
        blocks = max(-(-per_device // self._sample_block), 1)
        rows = blocks * self._sample_block * mesh.size
        split = split_first_axis(mesh)
        self._z_MD = jax.device_put(_padded(np.asarray(sample.z_MD, np.float32), rows, 0), split)
        self._identity_M = jax.device_put(
            _padded(identity_M.astype(np.int32), rows, _PADDING), split
        )

    def ranks(
        self,
        q_ND: Float32[np.ndarray, "N D"],
        p_ND: Float32[np.ndarray, "N D"],
        positive_hash_Nx2: UInt64[np.ndarray, "N 2"],
    ) -> Int32[np.ndarray, " N"]:
        """How many sampled passages, own text excluded, score above each pair's own.

        Args:
          q_ND: unit vectors of the queries; may be memory-mapped.
          p_ND: of their passages.
          positive_hash_Nx2: text hashes of the passages.
        Returns: int32 [N]; 0 says that no passage is above.
        """
        rank_N = np.zeros(len(q_ND), np.int32)
        identity_N = self._identities(positive_hash_Nx2)
        pending: tuple[int, jax.Array] | None = None
        for first in range(0, len(q_ND), self._query_block):
            part = slice(first, first + self._query_block)
            counted = first, self._count(q_ND[part], p_ND[part], identity_N[part])
            # Copied one block late, so that the devices do not wait.
            if pending is not None:
                _store(rank_N, *pending)
            pending = counted
        if pending is not None:
            _store(rank_N, *pending)
        return rank_N

    def _count(self, q_ND: np.ndarray, p_ND: np.ndarray, identity_N: np.ndarray) -> jax.Array:
        rows, split = self._query_block, split_first_axis(self._mesh)
        padded = _padded(q_ND, rows, 0), _padded(p_ND, rows, 0), _padded(identity_N, rows, 0)
        return _counter(self._mesh, self._sample_block)(
            *(jax.device_put(x, split) for x in padded),
            self._z_MD, self._identity_M, np.float32(self._config.tie_tolerance),
        )  # fmt: skip

    def _identities(self, hash_Nx2: np.ndarray) -> np.ndarray:
        """Number of each text among those sampled, or _NOT_SAMPLED."""
        place_N, is_sampled_N = find_keys(self._known, row_keys(hash_Nx2))
        return np.where(is_sampled_N, place_N, _NOT_SAMPLED).astype(np.int32)


def _padded(x: np.ndarray, rows: int, value: int) -> np.ndarray:
    padding = ((0, rows - len(x)), *((0, 0) for _ in x.shape[1:]))
    return np.pad(x, padding, constant_values=value)


def _store(rank_N: np.ndarray, first: int, result: jax.Array) -> None:
    part_N = rank_N[first : first + len(result)]
    part_N[:] = np.asarray(result)[: len(part_N)]


def keep_by_rank(
    rank_N: Int32[np.ndarray, " N"], config: ConsistencyConfig
) -> Bool[np.ndarray, " N"]:
    """Which pairs stay: those with fewer than `top_k` passages above.

    Args:
      rank_N: from `Ranker.ranks`.
      config: top_k.
    """
    return rank_N < config.top_k
