import os

# Before jax is imported anywhere: eight virtual devices, and no test may reach a hub.
os.environ["XLA_FLAGS"] = (
    os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
)
os.environ["JAX_PLATFORMS"] = os.environ.get("JAX_PLATFORMS", "cpu")
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"

from jaxtyping import install_import_hook

# Array annotations are checked at run time in every test.
install_import_hook(
    [
        "jina_jax.model",
        "jina_jax.train.log_sums",
        "jina_jax.train.losses",
        "jina_jax.feed",
        "jina_jax.evaluate",
        "jina_jax.score",
    ],
    "beartype.beartype",
)

import jax  # noqa: E402

jax.config.update("jax_numpy_rank_promotion", "raise")
