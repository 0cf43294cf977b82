"""A step that does not fit the memory: said before it runs, with what to change."""

import pytest

from jina_jax.errors import ExitCode
from tests.trainer import curve, start


@pytest.mark.slow
def test_a_step_that_does_not_fit_is_refused_with_remedies(folder):
    """Attention of 4,096 rows of 2,048 tokens, in a step that holds all scores at once."""
    flags = ("--feed.row-tokens=2048", "--feed.texts-per-row=1", "--feed.rows-multiple=4096")
    process = start(folder, "too_large", *flags)
    _, said = process.communicate(timeout=300)
    assert process.returncode == ExitCode.OUT_OF_MEMORY, said
    assert "GiB a device, and there are" in said and "Traceback" not in said
    for remedy in ("--train.scan-layers --train.remat full", "--mesh.fsdp", "grad-cache-rows"):
        assert remedy in said
    assert not curve(folder, "too_large")
