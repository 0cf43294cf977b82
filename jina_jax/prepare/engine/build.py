"""The engine that a configuration asks for."""

import os

from jina_jax.config import EngineConfig
from jina_jax.prepare.engine.local import LocalEngine
from jina_jax.prepare.engine.task import Engine

_SMALL_BYTES = 16 << 20


def build_engine(config: EngineConfig, input_bytes: int) -> Engine:
    """The engine that a configuration asks for.

    Args:
      config: kind and workers.
      input_bytes: for so little input that starting processes takes longer than the work, workers=0
        starts none.
    Raises: UserError when Ray is asked for and cannot be had.
    """
    if config.kind == "ray":
        from jina_jax.prepare.engine.ray import RayEngine

        return RayEngine(config.ray_address, config.workers)
    cores = len(os.sched_getaffinity(0))
    return LocalEngine(config.workers or (1 if input_bytes < _SMALL_BYTES else cores))
