"""The `demo` verb: the main job from end to end, on text that every machine has."""

import pyarrow.parquet as pq

from jina_jax import api
from jina_jax.cli.tables import funnel, hits, scores
from jina_jax.config import RunConfig
from jina_jax.inference.embedder import Embedder
from jina_jax.inference.search import search
from jina_jax.system.terminal import say

QUERIES = (
    "read a file line by line without loading it into memory",
    "stop waiting after a number of seconds",
    "compute the gradient of a function",
)


def demo(config: RunConfig) -> None:
    """Prepares, trains, evaluates, exports and searches; each part goes on where it was left."""
    say("1/5 prepare")
    manifest = api.prepare(config)
    print(funnel(manifest))
    say("2/5 train")
    api.train(config)
    say("3/5 evaluate")
    results = api.evaluate(config).retrieval
    print(scores(results, "held-out retrieval"))
    say("4/5 export")
    folder = api.export(config)
    say("5/5 search, with the exported model")
    held_out = config.data_path / str(manifest.sources[0].eval_path)
    passages = pq.read_table(held_out, columns=["positive"])["positive"].to_pylist()
    print(hits(search(Embedder.load(folder), lambda: passages, QUERIES, 3)))
    average = {system: 100 * values["ndcg@10"] for system, values in results["average"].items()}
    print(
        f"\nnDCG@10 before training {average['untrained']:.1f}, after {average['trained']:.1f}, "
        f"BM25 {average['bm25']:.1f}\n"
        f'exported model: {folder}\nuse it: SentenceTransformer("{folder}")'
    )
