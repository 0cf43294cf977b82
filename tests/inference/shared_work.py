"""What one of several processes does in `test_shares`: `python -m tests.inference.shared_work
PORT RANK PROCESSES FOLDER`. What it found goes to FOLDER/PROCESSES/RANK.npz and .json.
"""

import json
import sys
from pathlib import Path

import jax
import numpy as np

from jina_jax.config import DistributedConfig, MeshConfig, T5Config
from jina_jax.devices.distributed import joined
from jina_jax.devices.mesh import make_mesh, param_shardings
from jina_jax.evaluate.negation import NegationTask
from jina_jax.evaluate.reranking import Candidates, RerankingTask
from jina_jax.evaluate.retrieval import RetrievalTask, corpus_of
from jina_jax.evaluate.run import Tasks, score_tasks
from jina_jax.evaluate.sts import StsTask
from jina_jax.inference import embedder as embedder_module
from jina_jax.inference import encode_file as file_module
from jina_jax.inference.embedder import Embedder
from jina_jax.inference.search import top_k
from jina_jax.model.encoder import init_params
from jina_jax.system.terminal import say
from tests.random_texts import texts

CONFIG = T5Config(vocab_size=128, d_model=16, d_kv=4, d_ff=32, num_layers=1, num_heads=4)
TEXTS = texts(700, seed=9)


def tasks() -> Tasks:
    """One of each kind; the last passages are the first again, and of equal scores."""
    passages = {f"p{i}": text for i, text in enumerate(TEXTS[:600] + TEXTS[:50])}
    queries = {f"q{i}": TEXTS[i] + " deep" for i in range(0, 600, 4)}
    relevant = {q: {f"p{q[1:]}": 1, f"p{int(q[1:]) + 1}": 2} for q in queries}
    candidates = [Candidates(TEXTS[i], TEXTS[i + 1 : i + 3], TEXTS[i + 3 : i + 9])
                  for i in range(0, 300, 5)]  # fmt: skip
    return Tasks(
        [RetrievalTask("found", queries, corpus_of(passages), relevant)],
        [NegationTask("negated", TEXTS[:150], TEXTS[150:300], TEXTS[300:450])],
        [StsTask("alike", TEXTS[:300], TEXTS[300:600], [float(i % 7) for i in range(300)])],
        [RerankingTask("ranked", candidates)],
    )


def main(port: str, rank: str, processes: str, folder: Path) -> None:
    """Encodes, measures, searches and writes a file."""
    alone = processes == "1"
    given = DistributedConfig(f"127.0.0.1:{port}", int(processes), int(rank), 120)
    for module in (embedder_module, file_module):
        module.TEXTS_AT_ONCE = 256  # type: ignore[attr-defined]
    with joined(DistributedConfig() if alone else given, 60):
        embedder = Embedder.load(folder / "export")
        values = {"encoded": embedder.encode(TEXTS), "none": embedder.encode([])}
        values["few"] = embedder.encode(TEXTS[:5])
        values["rounded"] = embedder.at("int8").encode(TEXTS)
        values["blocks"] = np.array([len(z_ND) for z_ND in embedder.stream(TEXTS)])
        own = list(embedder.own(TEXTS))
        values["own"] = np.concatenate([one.index_N for one in own])
        values["own_ends"] = np.array([one.end for one in own])
        models = {"whole": embedder, "rounded": embedder.at("int8")}
        scores = score_tasks(tasks(), models, 10, with_bm25=True)
        rng = np.random.default_rng(0)
        # Whole numbers, so that products are exact and equal scores are common.
        q, corpus = (rng.integers(-2, 3, (n, 4)).astype(np.float32) for n in (11, 301))
        values["score"], values["index"] = top_k(q, corpus, 40, query_block=4, block=16)
        for k in (5, 500):
            values[f"few_score{k}"], values[f"few{k}"] = top_k(q, corpus[:7], k)
        mesh = make_mesh(MeshConfig(fsdp=int(processes)))
        shapes = jax.eval_shape(lambda key: init_params(CONFIG, key), jax.random.key(0))
        draw = jax.jit(
            lambda key: init_params(CONFIG, key),
            out_shardings=param_shardings(shapes, mesh, CONFIG),
        )
        divided = Embedder(draw(jax.random.key(0)), CONFIG, embedder.tokenizer, mesh=mesh)
        values["divided"] = divided.encode(TEXTS[:300])
        out = folder / processes
        count = file_module.count_texts(folder / "in.jsonl", "text", progress=False)
        file_module.encode_file(
            embedder, folder / "in.jsonl", count, out / "out.npy", progress=False
        )
        np.savez(out / f"{rank}.npz", **values)
        (out / f"{rank}.json").write_text(json.dumps(scores._asdict()))
    say("done")


if __name__ == "__main__":
    main(*sys.argv[1:4], Path(sys.argv[4]))
