"""What a plan says, as text."""

from collections.abc import Iterator

from jina_jax.plan.run import Plan, PlanOptions, Roofline

_GIB = 2**30

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


def _times(plan: Plan, options: PlanOptions) -> Iterator[str]:
    bound = plan.roofline
    if bound is None:
        yield f"  no roofline: the peaks of {plan.compiled.device_kind} are not known"
        return
    pairs_per_s = plan.shape.pairs / bound.step_s
    yield (
        f"  roofline      {bound.step_s * 1e3:,.1f} ms a step at best, bound by {bound.bound} "
        f"({_parts(bound)})"
    )
    yield f"                {pairs_per_s:,.0f} pairs/s and MFU {bound.mfu:.0%} at most"
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


def _parts(bound: Roofline) -> str:
    parts = (
        f"compute {bound.compute_s * 1e3:,.1f}, HBM {bound.hbm_s * 1e3:,.1f}, "
        f"interconnect {bound.interconnect_s * 1e3:,.1f}"
    )
    if bound.network_s:
        parts += f", network between slices {bound.network_s * 1e3:,.1f}"
    return parts
