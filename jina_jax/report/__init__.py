"""One page that shows a run from raw data to scores: `jina-jax report`."""
