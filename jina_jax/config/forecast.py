"""What `jina-jax prepare --plan` plans for."""

from dataclasses import dataclass

from jina_jax.config.fields import (
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    Share,
)


@dataclass(frozen=True)
class ForecastOptions:
    """What `prepare --plan` plans for."""

    machines: PositiveInt = 1
    """Machines that share the work."""
    cores: NonNegativeInt = 0
    """Of each, as fast as this one's; 0 takes as many as this one has."""
    price_per_machine_hour: NonNegativeFloat = 0
    """In any currency; 0 leaves the cost out."""
    pairs: NonNegativeFloat = 0
    """Records of all sources together, where these are not at hand: no source is read, and the
    sample is of made-up records."""
    bytes_per_pair: PositiveFloat = 500
    """Of such a record's texts."""
    kept: Share = 0
    """Share of the records that is trained on; 0 takes that of the sample, before any filter with a
    model."""
    scored_per_s: NonNegativeFloat = 0
    """Pairs or triplets that the accelerators of one machine score in a second, for filters with a
    model and guides; 0 measures the models on this machine."""
    sample_mb: PositiveFloat = 32
    """Of the sources, in all (10⁶ bytes)."""
