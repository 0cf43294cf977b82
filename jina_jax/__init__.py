"""Train text-embedding models on TPUs and GPUs: the whole of Jina Embeddings v1, in JAX."""

__version__ = "0.1.0"
