"""Random texts of a few words."""

import random

WORDS = (
    "the", "sea", "is", "full", "of", "fish", "and", "ships",
    "whale", "harbour", "anchor", "storm", "quiet", "deep", "cold",
)  # fmt: skip


def texts(count: int, *, seed: int = 0, longest: int = 40) -> list[str]:
    """Texts of 0..longest words; the same for the same seed."""
    draw = random.Random(seed)
    return [" ".join(draw.choices(WORDS, k=draw.randint(0, longest))) for _ in range(count)]
