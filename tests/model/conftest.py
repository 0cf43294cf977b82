import dataclasses

import pytest

from jina_jax.model.encoder import from_huggingface
from tests.model.torch_oracle import TINY, numpy_tensors, torch_encoder


@pytest.fixture(scope="module", params=["relu", "gated-gelu"])
def encoder(request):
    """(torch model, config, our parameters with the same weights)."""
    config = dataclasses.replace(TINY, feed_forward_proj=request.param)
    model = torch_encoder(config)
    return model, config, from_huggingface(numpy_tensors(model), config)
