"""How the tests compile."""

from importlib.metadata import version

# Without fusion emitters a training step compiles in half the time; jax 0.11 has no such flag, and
# a flag that isn't known ends the process.
_HAS_EMITTERS = tuple(map(int, version("jaxlib").split(".")[:2])) < (0, 11)
QUICKLY = "--xla_backend_optimization_level=0" + (
    " --xla_cpu_use_fusion_emitters=false" if _HAS_EMITTERS else ""
)
"""Flags of XLA for code that is compiled quickly rather than well."""
