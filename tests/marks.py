"""Which cases of a test are slow."""

import pytest


def some_slow(fast, every):
    """All cases of a test, of which those that are not in `fast` are marked slow."""
    return [
        pytest.param(
            *(case if isinstance(case, tuple) else (case,)),
            marks=[] if case in fast else pytest.mark.slow,
        )
        for case in every
    ]
