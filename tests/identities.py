"""Numbers of equal texts of a batch, as the loss has them."""

import jax.numpy as jnp
import numpy as np

from jina_jax.config import MeshConfig
from jina_jax.devices.mesh import make_mesh
from jina_jax.train.loss.identity import number_texts


def numbers(batch):
    """int32 [B, T]: equal for equal texts, -1 where there is none."""
    is_text = jnp.asarray(np.asarray(batch.slot_BT) >= 0)
    return np.asarray(
        number_texts(jnp.asarray(batch.identity_BTH), is_text, make_mesh(MeshConfig(1)))
    )
