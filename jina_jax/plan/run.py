"""`jina-jax plan`: does a run fit a machine, how long would it take at best, what would it cost?"""

import dataclasses
import math
from collections.abc import Iterator
from dataclasses import dataclass

from jina_jax.config import RunConfig
from jina_jax.devices.accelerators import Accelerator, accelerator
from jina_jax.devices.memory import remedies
from jina_jax.errors import UserError
from jina_jax.feed.batch import BatchFields
from jina_jax.inference.model_folder import find_folder, read_sentence_config
from jina_jax.model.attention import ON_TPU
from jina_jax.model.flops import StepFlops, step_flops
from jina_jax.plan.compile import BatchShape, Compiled, Request, batch_shape
from jina_jax.plan.compiler import compiled_step
from jina_jax.plan.topology import LOCAL, find_topology
from jina_jax.plan.traffic import BETWEEN_SLICES
from jina_jax.system.terminal import say


@dataclass(frozen=True)
class Roofline:
    """A bound, never a measurement: each resource at its peak, all of them at the same time."""

    times_s: dict[str, float]
    """Resource → the shortest time that a step needs of it; 0 where it needs none."""
    model_flops_per_s_at_peak: float
    """Of all devices, in the model's dtype."""
    model_flops: int
    shown_s: float = 0.0
    """Of the interconnect's time: what the program waits for, and computes nothing meanwhile."""

    @property
    def step_s(self) -> float:
        """No step is shorter."""
        return max(self._alone_s.values())

    @property
    def bound(self) -> str:
        """What takes longest."""
        return max(self._alone_s, key=lambda name: self._alone_s[name])

    @property
    def _alone_s(self) -> dict[str, float]:
        return self.times_s | {"compute": self.times_s["compute"] + self.shown_s}

    @property
    def mfu(self) -> float:
        """No step reaches a greater share of the peak with what the model must compute."""
        return self.model_flops / self.step_s / self.model_flops_per_s_at_peak


def roofline(
    flops: StepFlops,
    config: RunConfig,
    known: Accelerator,
    *,
    devices: int,
    hbm_bytes: float,
    received_bytes: float,
    between_slices_bytes: float = 0.0,
    shown_s: float = 0.0,
) -> Roofline:
    """The roofline of a step.

    Args:
      flops: operations of all devices.
      config: the dtype of its model and the precision of its loss choose the peaks.
      known: what a device can do.
      devices: that share the work evenly.
      hbm_bytes: read and written by one device.
      received_bytes: over the interconnect, by one device.
      between_slices_bytes: from other slices, by one device.
      shown_s: that the program waits for the interconnect.
    """
    peak = devices * known.flops_per_s(config.model.compute_dtype)
    encoder_s = (flops.hardware - flops.loss) / peak
    loss_s = flops.loss / (devices * known.float32_products_per_s(config.loss.precision))
    return Roofline(
        times_s={
            "compute": encoder_s + loss_s,
            "HBM": hbm_bytes / known.hbm_bytes_per_s,
            "interconnect": received_bytes / known.interconnect_bytes_per_s,
            "network between slices": between_slices_bytes
            / (known.network_bytes_per_s or math.inf),
        },
        model_flops_per_s_at_peak=peak,
        model_flops=flops.model,
        shown_s=shown_s,
    )


@dataclass(frozen=True)
class PlanOptions:
    """What to plan for."""

    topology: str = ""
    """A TPU slice such as v5e:16x16, or two as 2xv5e:16x16, which need not be at hand, or `local`
    for this machine; empty takes the machine that the config is set for, or else this one."""
    tokens: int = 0
    """Tokens of each text; 0 takes texts at the limits of the feed."""
    negatives: int | None = None
    """Hard negatives of a record; by default none for a config of pairs alone, or else 1."""
    pairs: float = 0
    """Pairs or triplets to train on, for time and cost; 0 leaves them out."""
    price_per_chip_hour: float = 0
    """In any currency; 0 leaves the cost out."""
    timeout_s: float = 1800
    """Stop compiling after so long."""
    fresh: bool = False
    """Compile again what was compiled before."""


@dataclass(frozen=True)
class Plan:
    """One configuration on one machine."""

    config: RunConfig
    shape: BatchShape
    topology: str
    compiled: Compiled
    flops: StepFlops
    known: Accelerator | None
    """None for devices whose peaks aren't known; then there is no roofline."""
    available_bytes: int
    remedy: str = ""
    """What was changed of the configuration asked for, as flags."""

    @property
    def roofline(self) -> Roofline | None:
        """None when the step doesn't fit or the peaks aren't known."""
        if self.known is None or not self.compiled.fits:
            return None
        received = self.compiled.collective_bytes
        between_slices = received.get(BETWEEN_SLICES, 0.0)
        return roofline(
            self.flops, self.config, self.known,
            devices=self.compiled.devices, hbm_bytes=self.compiled.hbm_bytes,
            received_bytes=sum(received.values()) - between_slices,
            between_slices_bytes=between_slices, shown_s=sum(self.compiled.shown_s.values()),
        )  # fmt: skip


def plan(config: RunConfig, options: PlanOptions) -> list[Plan]:
    """Compiles the step of a configuration for a machine, and, if it doesn't fit, remedies.

    Args:
      config: a valid configuration.
      options: the machine, the lengths of texts.
    Returns: the plan of the configuration as it is and, where that doesn't fit, of each remedy
      tried; the last one fits, unless none does.
    Raises: UserError for an unknown topology, a missing compiler, or a batch that doesn't divide.
    """
    options = dataclasses.replace(options, topology=options.topology or config.machine or LOCAL)
    slices = 1
    if options.topology != LOCAL:
        topology = find_topology(options.topology)
        slices = topology.slices
        if topology.family.usable_hbm_bytes is None:
            raise UserError(
                f"nothing can be planned for {topology.family.name}: without such a machine the "
                f"compiler takes each chip for two devices; plan on the machine with --topology "
                f"{LOCAL}"
            )
    plans = [_plan(config, options, "")]
    if plans[0].compiled.fits:
        return plans
    for remedy, changed in remedies(config, plans[0].compiled.devices, slices):
        say(f"plan: it does not fit; trying {remedy}")
        try:
            plans.append(_plan(changed, options, remedy))
        except UserError as error:
            say(f"plan: {remedy} cannot be used: {error}")
            continue
        if plans[-1].compiled.fits:
            break
    return plans


def batch_fields(config: RunConfig) -> BatchFields:
    """What the batches of a run will have beside their texts, before its data are prepared.

    Raises: UserError when the guide's model cannot be found.
    """
    sources, guide = config.data.sources, config.data.guide
    dims = guide.dims if config.loss.wants_guide else 0
    if config.loss.wants_guide and guide.model and not dims:
        model = read_sentence_config(find_folder(guide.model))
        dims = model.pooling.dimensions(model.config)
    return BatchFields(
        labels=any(source.label_field for source in sources),
        own_only=not all(source.in_batch for source in sources),
        guide_dims=dims,
    )


def _plan(config: RunConfig, options: PlanOptions, remedy: str) -> Plan:
    negatives = options.negatives
    if negatives is None:
        has_triplets = any(source.negative_field for source in config.data.sources)
        negatives = int(has_triplets)
    sources = config.data.sources
    is_scored = bool(sources) and all(source.score_field for source in sources)
    shape = batch_shape(config.feed, options.tokens, negatives, batch_fields(config), is_scored)
    request = Request(config, shape, options.topology)
    compiled = compiled_step(request, timeout_s=options.timeout_s, fresh=options.fresh)
    available = compiled.available_bytes
    if options.topology != LOCAL:
        available = available or find_topology(options.topology).family.usable_hbm_bytes or 0
    return Plan(
        config, request.shape, options.topology, compiled,
        _flops(config, request.shape, compiled),
        accelerator(compiled.device_kind), available, remedy,
    )  # fmt: skip


def _flops(config: RunConfig, shape: BatchShape, compiled: Compiled) -> StepFlops:
    return step_flops(
        config.model, rows=shape.computed, texts=shape.texts,
        queries=shape.pairs, keys=shape.pairs * (1 + shape.negatives),
        cuts=config.loss.matryoshka_dims, lora=config.lora,
        encoded_again=config.train.encoded_again, scored_again=compiled.attention in ON_TPU,
    )  # fmt: skip


_GIB = 2**30
FED_PAIRS_PER_S = 110_000
"""That two cores of a host make of short texts: `benchmarks/feed.py`."""
_ATTENTION = {
    "pallas": "by the kernel for TPUs, which never writes the scores",
    "cudnn": "by NVIDIA's fused kernel, which never writes the scores",
    "by_row": "row by row",
    "at_once": "left to the compiler, which writes the scores",
}

CAVEAT = (
    "The memory is the compiler's own figure. The roofline is no measurement: it takes published\n"
    "peaks, every resource at its peak and all at the same time; no run is faster, and most are\n"
    "slower. `jina-jax train` logs what is measured."
)


def report(plans: list[Plan], options: PlanOptions) -> str:
    """The plan asked for, the remedies tried, and the roofline of the one that fits."""
    first, last = plans[0], plans[-1]
    lines = [_title(first), *_memory(first)]
    for tried in plans[1:]:
        fits = "fits" if tried.compiled.fits else "does not fit either"
        lines.append(f"  with {tried.remedy}: {fits}, {_needs(tried)}")
    if not last.compiled.fits:
        lines.append("  nothing that was tried fits: take a larger slice")
        return "\n".join(lines)
    if len(plans) > 1:
        lines += [f"\nwith {last.remedy}:", *_memory(last)]
    lines += [*_work(last), *_collectives(last), *_times(last, options)]
    return "\n".join(lines)


def _title(plan: Plan) -> str:
    texts = " + ".join(str(n) for n in plan.shape.lengths)
    records = "records" if plan.shape.negatives else "pairs"
    return (
        f"{plan.config.name} on {plan.topology} ({plan.compiled.devices} × "
        f"{plan.compiled.device_kind}): {plan.shape.pairs:,} {records} of {texts} tokens a step, "
        f"in {plan.shape.rows:,} rows of {plan.shape.row_tokens}"
    )


def _needs(plan: Plan) -> str:
    needed = plan.compiled.needed_bytes / _GIB
    return f"{needed:.2f} GiB of {plan.available_bytes / _GIB:.2f} GiB a device"


def _memory(plan: Plan) -> Iterator[str]:
    compiled = plan.compiled
    if not compiled.fits:
        yield f"  memory        does not fit: {_needs(plan)}"
        return
    yield (
        f"  memory        fits: {_needs(plan)} (arguments {compiled.argument_bytes / _GIB:.2f}, "
        f"temporaries {compiled.temporary_bytes / _GIB:.2f}, "
        f"output {compiled.output_bytes / _GIB:.2f})"
    )


def _work(plan: Plan) -> Iterator[str]:
    flops = plan.flops
    yield f"  attention     {_ATTENTION[plan.compiled.attention]}"
    yield (
        f"  model FLOPs   {flops.model / 1e12:,.1f} TFLOP a step, {flops.text / flops.model:.0%} "
        f"of it for text; {flops.hardware / 1e12:,.1f} with what is computed again"
    )


def _collectives(plan: Plan) -> Iterator[str]:
    compiled = plan.compiled
    for kind in sorted(compiled.collective_bytes, key=lambda k: -compiled.collective_bytes[k]):
        yield (
            f"  {kind:<20}{compiled.collective_bytes[kind] / 1e6:,.1f} MB received a device a "
            f"step, in {compiled.collective_count[kind]:,}"
        )
    if compiled.unknown_loops:
        yield (
            f"  {compiled.unknown_loops} loops of unknown length count once: bytes of HBM and of "
            f"collectives are too low"
        )


def _feed(needed_per_s: float, hosts: int) -> str:
    each = "the host feeds" if hosts == 1 else f"each of {hosts} hosts feeds"
    if needed_per_s <= FED_PAIRS_PER_S:
        verdict = "which two of its cores can do"
    else:
        more = math.ceil(2 * needed_per_s / FED_PAIRS_PER_S)
        verdict = f"which takes some {more} cores: set feed.workers, or the devices will wait"
    return f"  feed          {each} {needed_per_s:,.0f} pairs/s, {verdict}"


def overlap_line(shown_s: dict[str, float], interconnect_s: float) -> Iterator[str]:
    """What of the interconnect's time is hidden and what is not; nothing where it has no part."""
    if interconnect_s:
        by_kind = sorted(shown_s, key=lambda kind: -shown_s[kind])
        kinds = ", ".join(f"{kind} {shown_s[kind] * 1e3:,.1f}" for kind in by_kind)
        shown = sum(shown_s.values())
        hidden = max(0.0, interconnect_s - shown)
        yield (
            f"  overlap       of the interconnect's {interconnect_s * 1e3:,.1f} ms, "
            f"{hidden * 1e3:,.1f} pass behind other work at best and {shown * 1e3:,.1f} are waited "
            f"for" + (f" ({kinds})" if kinds else "")
        )


def _times(plan: Plan, options: PlanOptions) -> Iterator[str]:
    bound = plan.roofline
    if bound is None:
        yield f"  no roofline: the peaks of {plan.compiled.device_kind} are not known"
        return
    pairs_per_s = plan.shape.pairs / bound.step_s
    shown = [
        f"{name} {time_s * 1e3:,.1f}"
        for name, time_s in bound.times_s.items()
        if time_s or name != "network between slices"
    ]
    yield (
        f"  roofline      {bound.step_s * 1e3:,.1f} ms a step at best, bound by {bound.bound} "
        f"({', '.join(shown)})"
    )
    yield f"                {pairs_per_s:,.0f} pairs/s and MFU {bound.mfu:.0%} at most"
    yield from overlap_line(plan.compiled.shown_s, bound.times_s["interconnect"])
    yield _feed(pairs_per_s / plan.compiled.hosts, plan.compiled.hosts)
    if options.pairs:
        hours = options.pairs / pairs_per_s / 3600
        chip_hours = hours * plan.compiled.devices
        text = (
            f"  {options.pairs:,.0f} pairs: at least {hours:,.2f} h, {chip_hours:,.1f} chip-hours"
        )
        if options.price_per_chip_hour:
            cost = chip_hours * options.price_per_chip_hour
            text += f", {cost:,.2f} at {options.price_per_chip_hour:g} a chip-hour"
        yield text
    yield CAVEAT
