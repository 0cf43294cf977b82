"""What rounding costs: all-MiniLM-L6-v2 trained in float32, in bfloat16 and with a rounded loss.

    python benchmarks/precision.py --sts sts-dev.csv

Arms of one ablation with three seeds: `model.compute_dtype` and `model.residual_dtype` in
bfloat16, and `loss.precision` of "high" and "default". The data are the demo's, the documentation
of the installed packages, whose held-out pairs are searched; with --sts, a file without a header
whose columns 6, 7 and 5 are two sentences and a score, Spearman's correlation is told too. On a CPU
all products are float32, so those of the loss are rounded here as TPUs round them: an embedding to
8 bits, or to two numbers of 8 bits each whose products are added but for the smallest.
"""

import dataclasses
import os
import statistics
from dataclasses import dataclass
from pathlib import Path

os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_allow_excess_precision=false"

import jax
import jax.numpy as jnp
import tyro

from jina_jax.ablate.report import ablation_text
from jina_jax.ablate.run import ablate
from jina_jax.config import Ablation, Arm, StsSet
from jina_jax.config.fields import ProductPrecision
from jina_jax.config.files import load_config
from jina_jax.evaluate.results import score_all
from jina_jax.evaluate.sts import read_sts, score_sts
from jina_jax.inference.embedder import Embedder
from jina_jax.inference.initial import with_named_model
from jina_jax.train.loss import log_sums

ARMS = (
    Arm("float32"),
    Arm("bfloat16", {"model.compute_dtype": "bfloat16"}),
    Arm(
        "bfloat16-residual",
        {"model.compute_dtype": "bfloat16", "model.residual_dtype": "bfloat16"},
    ),
    Arm("loss-high", {"loss.precision": "high"}),
    Arm("loss-default", {"loss.precision": "default"}),
)


@dataclass(frozen=True)
class Options:
    """What to run."""

    workdir: Path = Path("runs/precision")
    """Everything is kept below it, and a killed benchmark goes on there."""
    sts: Path | None = None
    """Of STS Benchmark."""
    seeds: int = 3
    steps: int = 8
    batch_size: int = 64
    """Pairs of each step; the demo takes 45 of 128."""


def rounded(a: jax.Array, b: jax.Array, precision: ProductPrecision) -> jax.Array:
    """A product of float32 as a TPU computes it in each precision."""

    def product(x: jax.Array, y: jax.Array) -> jax.Array:
        return jnp.matmul(x, y, precision=jax.lax.Precision.HIGHEST)

    def head(x: jax.Array) -> jax.Array:
        return jax.lax.reduce_precision(x, exponent_bits=8, mantissa_bits=7)

    if precision == "highest":
        return product(a, b)
    if precision == "default":
        return product(head(a), head(b))
    rest_a, rest_b = head(a - head(a)), head(b - head(b))
    return product(head(a), head(b)) + (product(head(a), rest_b) + product(rest_a, head(b)))


def main() -> None:
    """Trains what is missing, and prints the tables."""
    options = tyro.cli(Options, description=__doc__)
    log_sums._matmul = rounded
    demo = load_config("demo")
    root = options.workdir.absolute()
    base = dataclasses.replace(
        demo, name="precision", workdir=str(root), data_dir="",
        train=dataclasses.replace(demo.train, num_steps=options.steps),
        feed=dataclasses.replace(demo.feed, global_batch_size=options.batch_size),
    )  # fmt: skip
    print(ablation_text(ablate(Ablation(with_named_model(base), ARMS, seeds=options.seeds))))
    if options.sts is None:
        return
    sts = read_sts(StsSet("sts", (str(options.sts.absolute()),), "text", ("6", "7", "5")))
    for arm in ARMS:
        found = []
        for seed in range(options.seeds):
            model = Embedder.from_run(root / arm.name / f"seed-{seed}")
            scores = score_all([sts], {"model": model}, score_sts)["sts"]["model"]
            found.append(100 * scores["spearman"])
        spread = f" ± {statistics.stdev(found):.2f}" if len(found) > 1 else ""
        print(f"{arm.name:20} {statistics.mean(found):.2f}{spread} {[round(x, 2) for x in found]}")


if __name__ == "__main__":
    main()
