"""How fast a run goes: pairs and tokens a second, and the share of the devices' peak it uses."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
from jax.sharding import Mesh

from jina_jax.config import RunConfig
from jina_jax.devices.accelerators import accelerator
from jina_jax.feed.batch import PackedBatch
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
        self._steps = self._tokens = self._positions = self._model_flops = self._text_flops = 0

    def add(self, batch: PackedBatch) -> None:
        """Counts a step that is done."""
        rows, row_tokens = batch.segments_RL.shape
        texts = text_work(batch.segments_RL)
        pairs, texts_per_pair = batch.slot_BT.shape
        flops = step_flops(
            self._config.model, rows=Work.of_rows(rows, row_tokens), texts=texts,
            queries=pairs, keys=pairs * (texts_per_pair - 1),
            encoded_again=self._config.train.encoded_again,
            cuts=self._config.loss.matryoshka_dims,
        )  # fmt: skip
        self._steps += 1
        self._tokens += texts.tokens
        self._positions += rows * row_tokens
        self._model_flops += flops.model
        self._text_flops += flops.text

    @contextmanager
    def leaves_out(self) -> Iterator[None]:
        """Does not count the time of what is done inside: something else than training."""
        began = time.perf_counter()
        yield
        self._since += time.perf_counter() - began

    def read(self) -> dict[str, float]:
        """The rates since the last call, and starts anew.

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
