"""Suites of MTEB tasks, for `jina-jax mteb`."""
