"""What `prepare --plan` tells beside what the preparation then takes.

    python benchmarks/prepare_plan.py --pairs 2000000

The pairs are those of `prepare_speed.py`, the vocabulary is learned, and the work is that of all
stages. Both are measured one after the other: another load on the machine between them shows.
"""

import os
import shutil
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import tyro
from prepare_speed import input_in

from jina_jax.config import DataConfig, EngineConfig, SourceConfig, TokenizerConfig
from jina_jax.config.forecast import ForecastOptions
from jina_jax.prepare.forecast import forecast
from jina_jax.prepare.run import prepare


@dataclass(frozen=True)
class Options:
    """What to measure."""

    pairs: int = 2_000_000
    workers: int = 2
    folder: Path | None = None
    """Work here, and keep the input for another run; a temporary folder otherwise."""


def main(options: Options) -> None:
    """Prints the forecast, and seconds and bytes of it and of the preparation."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.folder or Path(temporary)
        source = input_in(folder, options.pairs)
        config = DataConfig(
            (SourceConfig("pairs", paths=(str(source),)),),
            TokenizerConfig("train", vocab_size=8000),
            engine=EngineConfig("local", options.workers),
        )
        told = forecast(config, ForecastOptions(cores=options.workers))
        print(f"{told}\nload {os.getloadavg()[0]:.1f}", flush=True)
        out, work = folder / "plan-out", folder / "plan-out.work"
        for path in (out, work):
            shutil.rmtree(path, ignore_errors=True)
        began = time.perf_counter()
        manifest = prepare(config, out, progress=False)
        took_s = time.perf_counter() - began
        written = sum(path.stat().st_size for path in work.rglob("*") if path.is_file())
        print(
            f"told {told.hours * 3600:,.0f} s, {told.written_bytes / 1e9:.3f} GB, "
            f"{told.trained:,.0f} trained on; took {took_s:,.0f} s, {written / 1e9:.3f} GB, "
            f"{manifest.train_records:,} trained on; load {os.getloadavg()[0]:.1f}"
        )
        for path in (out, work):
            shutil.rmtree(path)


if __name__ == "__main__":
    main(tyro.cli(Options))
