"""Encoding a batch in chunks, so that a step holds the activations of one chunk alone.

A contrastive loss needs the embeddings of the whole batch at once, but its gradient reaches the
parameters through each row by itself. So the rows are encoded chunk by chunk and their activations
let go; the loss and its gradient with respect to the embeddings follow; then each chunk is encoded
again, with its activations, and its share of the parameters' gradient added to the rest. The
gradient is that of the whole batch. It costs a second encoding, but no more traffic: each device
adds up its own share over the chunks, and the shares are summed over the devices once.

Source: Gao et al. 2021, "Scaling Deep Contrastive Learning Batch Size under Memory Limited Setup"
(arXiv 2101.06983).
"""

import math
from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import Mesh, PartitionSpec
from jaxtyping import Array, Float32

from jina_jax.devices.mesh import ROWS, split_first_axis


def encode_in_chunks(
    encode: Callable[[Any, Any], Float32[Array, "M ..."]],
    params: Any,
    rows: Any,
    *,
    chunk_rows: int,
    mesh: Mesh,
) -> Float32[Array, "R ..."]:
    """`encode(params, rows)`, of which only one chunk's activations are alive at a time.

    Args:
      encode: (params, rows of a chunk) → float32, row by row. Each row must be encoded by itself.
      params: a pytree of arrays; each device encodes with all of them.
      rows: a pytree of arrays with R rows on their first axis, divided over the mesh.
      chunk_rows: rows that all devices encode at once; divides R, and the devices divide it.
      mesh: each device encodes the rows that it holds.
    Returns: [R, ...] in the order of `rows`, divided as they are. Differentiating it with respect
      to `params` encodes each chunk again.
    """
    divided = split_first_axis(mesh).spec
    devices = math.prod(mesh.shape[axis] for axis in ROWS)

    def local(params: Any, rows: Any) -> Array:
        # The transpose of this cast is the sum over the devices. Here, outside of the loop, it is
        # made once a step; inside, every chunk would send a whole gradient around.
        params = jax.tree.map(lambda x: jax.lax.pcast(x, ROWS, to="varying"), params)
        chunks = jax.tree.map(lambda x: x.reshape(-1, chunk_rows // devices, *x.shape[1:]), rows)
        # What a step of the loop saves for its gradient is what `checkpoint` lets it: the rows.
        recomputed = jax.checkpoint(encode, prevent_cse=False)
        encoded = jax.lax.map(lambda chunk: recomputed(params, chunk), chunks)
        return encoded.reshape(-1, *encoded.shape[2:])

    return jax.shard_map(
        local, mesh=mesh, in_specs=(PartitionSpec(), divided), out_specs=divided,
        axis_names=set(ROWS),
    )(params, rows)  # fmt: skip
