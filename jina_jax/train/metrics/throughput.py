"""How fast a run goes: pairs, tokens and operations a second, and where its time goes."""

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import numpy as np
from jax.sharding import Mesh

from jina_jax.config import RunConfig
from jina_jax.devices.accelerators import accelerator
from jina_jax.feed.batch import Batch
from jina_jax.model.flops import Work, step_flops


def text_work(segments_RL: np.ndarray) -> Work:
    """Tokens of the texts of packed rows, and the positions that attention within them scores.

    Args:
      segments_RL: int, 0 for padding, 1.. for the texts of a row.
    Returns: real tokens, and the sum of the squared lengths of the texts.
    """
    rows = np.arange(len(segments_RL))[:, None] * (int(segments_RL.max(initial=0)) + 1)
    length_N = np.bincount((rows + segments_RL)[segments_RL > 0])
    return Work(int(length_N.sum()), int((length_N**2).sum()))


class Throughput:
    """Adds up steps from one logged line to the next."""

    def __init__(self, config: RunConfig, mesh: Mesh):
        self._config, self._devices = config, mesh.size
        known = accelerator(mesh.devices.flat[0].device_kind)
        dtype = config.model.compute_dtype
        self._peak_flops_per_s = mesh.size * known.flops_per_s(dtype) if known else None
        self.data_wait_s = 0.0
        self._reset()

    def _reset(self) -> None:
        self._since, self.data_wait_s = time.perf_counter(), 0.0
        self._cut_tokens = 0
        self._steps = self._tokens = self._positions = self._model_flops = self._text_flops = 0

    def add(self, batch: Batch) -> None:
        """Counts a step that is done; the whole of its batch is taken to be as its groups here."""
        rows, row_tokens = batch.arrays.segments_RL.shape
        rows = round(rows * batch.parts)
        texts = text_work(batch.arrays.segments_RL)
        texts = Work(*(round(count * batch.parts) for count in texts))
        pairs, texts_per_pair = batch.arrays.slot_BT.shape
        pairs = round(pairs * batch.parts)
        flops = step_flops(
            self._config.model, rows=Work.of_rows(rows, row_tokens), texts=texts,
            queries=pairs, keys=pairs * (texts_per_pair - 1),
            encoded_again=self._config.train.encoded_again,
            cuts=self._config.loss.matryoshka_dims, lora=self._config.lora,
        )  # fmt: skip
        self._steps += 1
        self._tokens += texts.tokens
        self._cut_tokens += round(batch.cut_tokens * batch.parts)
        self._positions += rows * row_tokens
        self._model_flops += flops.model
        self._text_flops += flops.text

    @contextmanager
    def leaves_out(self) -> Iterator[None]:
        """Leaves the time inside out of the rates, since it is not training."""
        began = time.perf_counter()
        yield
        self._since += time.perf_counter() - began

    def read(self) -> dict[str, float]:
        """The rates since the last call, and starts anew.

        `cut_share` is that of all tokens that were cut because a group's rows were full.

        `tflops_per_s_per_device` and `mfu` are of what is computed, padding included;
        `text_tflops_per_s_per_device` and `text_mfu` of the texts alone. The shares (0 to 1 of the
        peak of all devices) are left out where the peak isn't known.
        """
        elapsed_s = time.perf_counter() - self._since
        per_device = 1e12 * elapsed_s * self._devices
        values = {
            "pairs_per_s": self._steps * self._config.feed.global_batch_size / elapsed_s,
            "real_tokens_per_s": self._tokens / elapsed_s,
            "padding_share": 1 - self._tokens / self._positions,
            "cut_share": self._cut_tokens / (self._tokens + self._cut_tokens),
            "step_time_s": elapsed_s / self._steps,
            "data_wait_s": self.data_wait_s / self._steps,
            "tflops_per_s_per_device": self._model_flops / per_device,
            "text_tflops_per_s_per_device": self._text_flops / per_device,
        }
        if self._peak_flops_per_s is not None:
            values["mfu"] = self._model_flops / elapsed_s / self._peak_flops_per_s
            values["text_mfu"] = self._text_flops / elapsed_s / self._peak_flops_per_s
        self._reset()
        return values


BUCKETS = ("start", "compile", "data_wait", "step", "checkpoint", "evaluation", "lost")
"""`start`: until the first batch is asked for. `checkpoint`: what the loop waits for, not what is
written beside it. `lost`: work after the newest checkpoint that a kill took and that is done again,
as far as metrics.jsonl tells of it."""


class Goodput:
    """Counts every second of this process in one bucket, and those of the processes before it."""

    def __init__(self) -> None:
        self._seconds = dict.fromkeys(BUCKETS, 0.0)
        self._bucket, self._since = "start", time.perf_counter()

    def resume(self, saved: Mapping[str, float], last_line: Mapping[str, float]) -> None:
        """Goes on from an earlier process.

        Args:
          saved: `saved_with` of the checkpoint that the run goes on from.
          last_line: the last line that was written to metrics.jsonl before.
        """
        for bucket in BUCKETS:
            self._seconds[bucket] += saved.get(bucket, 0.0)
        spent = sum(last_line.get(_name(bucket)) or 0.0 for bucket in BUCKETS)
        self._seconds["lost"] += max(0.0, spent - sum(saved.values()))

    def enter(self, bucket: str) -> str:
        """Counts what follows in a bucket, and gives the one before."""
        now = time.perf_counter()
        self._seconds[self._bucket] += now - self._since
        before, self._bucket, self._since = self._bucket, bucket, now
        return before

    @contextmanager
    def of(self, bucket: str) -> Iterator[None]:
        """Counts what is done inside in a bucket."""
        before = self.enter(bucket)
        try:
            yield
        finally:
            self.enter(before)

    def saved_with(self) -> dict[str, float]:
        """Seconds of each bucket, to be saved with a checkpoint."""
        self.enter(self._bucket)
        return dict(self._seconds)

    def read(self) -> dict[str, float]:
        """`goodput/BUCKET_s` for a line of metrics, and the `share` of all time that was step."""
        seconds = self.saved_with()
        share = seconds["step"] / max(sum(seconds.values()), 1e-9)
        return {_name(bucket): s for bucket, s in seconds.items()} | {"goodput/share": share}


def _name(bucket: str) -> str:
    return f"goodput/{bucket}_s"
