"""Encoding a batch in chunks, so that a step holds the activations of one chunk alone.

A contrastive loss needs the embeddings of the whole batch at once, but its gradient reaches the
parameters through each row by itself. So the rows are encoded chunk by chunk and their activations
let go; the loss and its gradient with respect to the embeddings follow; then each chunk is encoded
again, with its activations, and its share of the parameters' gradient added to the rest. The
gradient is that of the whole batch. It costs a second encoding.

Source: Gao et al. 2021, "Scaling Deep Contrastive Learning Batch Size under Memory Limited Setup"
(arXiv 2101.06983).
"""

from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Float32

from jina_jax.mesh import split_first_axis


def encode_in_chunks(
    encode: Callable[[Any], Float32[Array, "M ..."]], rows: Any, *, chunk_rows: int, mesh: Mesh
) -> Float32[Array, "R ..."]:
    """`encode(rows)`, of which only one chunk's activations are alive at a time.

    Args:
      encode: rows of a chunk → float32, row by row. Each row must be encoded by itself.
      rows: a pytree of arrays with R rows on their first axis, divided over the mesh.
      chunk_rows: divides R, and the devices divide it.
      mesh: each device encodes as many rows of a chunk as any other, and they are rows that it
        holds.
    Returns: [R, ...] in the order of `rows`, divided as they are. Differentiating it encodes each
      chunk again.
    """
    devices = mesh.size
    spec = split_first_axis(mesh).spec

    def constrain(tree: Any, *spec: Any) -> Any:
        sharding = NamedSharding(mesh, PartitionSpec(*spec))
        return jax.tree.map(lambda x: jax.lax.with_sharding_constraint(x, sharding), tree)

    def split(x: Array) -> Array:
        parts = x.reshape(devices, -1, chunk_rows // devices, *x.shape[1:])
        return parts.swapaxes(0, 1).reshape(-1, chunk_rows, *x.shape[1:])

    def join(x: Array) -> Array:
        parts = x.reshape(len(x), devices, -1, *x.shape[2:])
        return parts.swapaxes(0, 1).reshape(-1, *x.shape[2:])

    chunks = constrain(jax.tree.map(split, rows), None, *spec)
    # What a scan's step saves for its gradient is what `checkpoint` lets it: the rows themselves.
    # The gradient of the parameters that `encode` closes over is added up over the steps.
    encoded = jax.lax.map(jax.checkpoint(encode, prevent_cse=False), chunks)
    return constrain(join(constrain(encoded, None, *spec)), *spec)
