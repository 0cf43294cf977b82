"""What a family of encoders is, and how the layers of any of them are run."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from functools import partial
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import PartitionSpec
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Int

from jina_jax.config.fields import ProductPrecision
from jina_jax.model.attention import Kernel
from jina_jax.model.dropout import DropoutKey
from jina_jax.model.huggingface import Layout


class Access:
    """How an encoder gets at its parameters: here they are whole."""

    is_divided = False
    """Whether devices hold parts of the matrices, which come together where they are used."""

    def layer(self, params: nnx.State) -> nnx.State:
        """The parameters of a layer, whole."""
        return params

    def whole(self, x: ArrayLike, axis: int) -> Array:
        """A matrix outside of the layers, whole, of which devices may hold parts of an axis."""
        return jnp.asarray(x)

    def look_up(self, table_VD: ArrayLike, ids: Int[Array, "..."]) -> Array:
        """`table_VD[ids]`, where devices may hold columns of the table."""
        return jnp.take(table_VD, ids, axis=0)


WHOLE = Access()


class Execution(NamedTuple):
    """How the layers are run. It changes time, memory and rounding, not the function."""

    scan: bool = False
    """Compile one layer and loop over all, on parameters that are stacked in the step alone."""
    remat: Literal["none", "dots", "full"] = "none"
    """What the backward pass computes again instead of keeping: nothing, all but the products with
    weights, or whole layers."""
    kernel: Kernel = "at_once"
    """Of the attention."""
    access: Access = WHOLE
    """To the parameters."""
    precision: ProductPrecision = "highest"
    """Of matrix products in float32."""


AT_ONCE = Execution()


def products(config: Any, execution: Execution) -> AbstractContextManager[None]:
    """The precision that matrix products of an encoder of this shape ask for."""
    is_float32 = config.compute_dtype == "float32"
    context: AbstractContextManager[None] = jax.default_matmul_precision(
        execution.precision if is_float32 else "default"
    )
    return context


_INTO, _OUT_OF = PartitionSpec("fsdp", "tensor"), PartitionSpec("tensor", "fsdp")
BLOCK_SHARDINGS = {
    "*/attention/[qkv]/kernel": _INTO,
    "*/attention/o/kernel": _OUT_OF,
    "*/w[ig]*/kernel": _INTO,
    "*/wo/kernel": _OUT_OF,
}
"""Of the matrices of a block: heads and the inner dimension are divided over `tensor`."""
NAMED_DIVIDED = {
    "hidden_size": "fsdp",
    "num_attention_heads": "tensor",
    "intermediate_size": "tensor",
}
"""What must divide of those whose fields have BERT's names."""
TABLE_SHARDING = PartitionSpec(None, "fsdp")
"""Of pieces, positions and types, whose numbers divide by little in the published models."""


class Family(NamedTuple):
    """Encoders of one architecture: all that depends on which one it is."""

    name: str
    """For messages."""
    config: type
    """The dataclass of its shapes."""
    model_types: tuple[str, ...]
    """What `model_type` of a `config.json` may be."""
    encoder: Any
    """Class of the module: made of a config and `rngs`, and called as `encoder.apply` is."""
    layout: Callable[[Any], Layout]
    """Names of the tensors of a config's model."""
    used: Callable[[Mapping[str, np.ndarray]], dict[str, np.ndarray]]
    """Of a folder's tensors those of the encoder, under the names of `layout`."""
    ignored: tuple[str, ...]
    """Beginnings of names of tensors that are not read at all."""
    read_config: Callable[[Mapping[str, Any]], Any]
    """The shape that a `config.json` describes; raises UserError for one that isn't supported."""
    write_config: Callable[[Any], dict[str, Any]]
    """`config.json` of a shape, without `torch_dtype`."""
    shardings: Mapping[str, PartitionSpec]
    """Path of a matrix, as a pattern, → the axes of the mesh that divide it."""
    divided: Mapping[str, str]
    """Field of the config → the axis of the mesh that it must divide by."""


def _all_but_gathered(primitive: Any, *_: Any, **__: Any) -> bool:
    """Keeps activations for the backward pass, and no parameters of other devices."""
    return not primitive.name.startswith("all_gather")


def run_layers(
    blocks: Sequence[nnx.Module],
    x_ND: Float[Array, "N D"],
    run: Callable[[Any, Array, DropoutKey | None, int | Array], Array],
    dropout_key: DropoutKey | None,
    execution: Execution,
    config: Any,
    first: int = 0,
) -> Float[Array, "N D"]:
    """Passes hidden states through blocks of one structure.

    Args:
      blocks: of the encoder, in order.
      x_ND: hidden states; N = R * L tokens, row by row.
      run: maps a block, hidden states, the block's own dropout key and its number, which is traced
        in a scan, to hidden states.
      dropout_key: the encoder's, or None for no dropout.
      execution: how.
      config: of the encoder, with the dtypes of products and hidden states.
    Returns: float32.
      first: number of the first of these blocks.
    """
    graphdef = nnx.graphdef(blocks[0])
    params = [nnx.state(block, nnx.Param) for block in blocks]

    def layer(number: int | Array, x_ND: Array, params: nnx.State) -> Array:
        key = None if dropout_key is None else dropout_key.fold_in(number)
        whole = execution.access.layer(params)
        return run(nnx.merge(graphdef, whole), x_ND, key, number).astype(x_ND.dtype)

    def numbered(number: int | Array) -> Callable[[Array, nnx.State], Array]:
        of_layer = partial(layer, number)
        if execution.remat == "none" and not execution.access.is_divided:
            return of_layer
        policies = jax.checkpoint_policies
        kept = {
            "none": _all_but_gathered,
            "dots": policies.dots_with_no_batch_dims_saveable,
            "full": policies.nothing_saveable,
        }
        # A loop keeps XLA from merging the second computation with the first by itself.
        return jax.checkpoint(
            of_layer, policy=kept[execution.remat], prevent_cse=not execution.scan
        )

    x_ND = x_ND.astype(config.residual_dtype)
    if not execution.scan:
        for number, of_layer in enumerate(params, first):
            x_ND = numbered(number)(x_ND, of_layer)
        return x_ND.astype(jnp.float32)
    # Matrices are stacked in the dtype they are multiplied in, which is half the copy.
    stacked = jax.tree.map(
        lambda *xs: jnp.stack([x.astype(config.compute_dtype) if x.ndim > 1 else x for x in xs]),
        *params,
    )
    numbers = first + jnp.arange(len(blocks))
    x_ND, _ = jax.lax.scan(
        lambda x_ND, xs: (numbered(xs[1])(x_ND, xs[0]), None), x_ND, (stacked, numbers)
    )
    return x_ND.astype(jnp.float32)
