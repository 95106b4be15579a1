"""A plan in lines for the console."""

from __future__ import annotations

from collections.abc import Iterator

from optimas_jax.plan.device import UTILISATION, DevicePlan, ModelPlan, Training

_GB = 2**30


def device_lines(plan: DevicePlan) -> Iterator[str]:
    """The device part of a plan."""
    data, model = plan.mesh
    if not plan.models:
        yield "devices: none needed; servers answer everything"
        return
    yield f"devices: {plan.count} x {plan.kind.name}, mesh {data} x {model} (data x model)"
    for one in plan.models:
        yield from _model_lines(one)
    kinds = {"compiled" if step.memory.compiled else "estimated" for one in plan.models for step in one.training}
    how = " and ".join(sorted(kinds)) or "estimated"
    verdict = "fits" if plan.fits else f"does not fit: {plan.way_out}"
    yield f"memory: {plan.needed / _GB:.1f} GB of {plan.kind.memory / _GB:.1f} GB on each device ({how}): {verdict}"


def _model_lines(one: ModelPlan) -> Iterator[str]:
    yield f"  {one.spec}: {one.parameters / 1e9:.2f} billion weights, {one.weights / _GB:.2f} GB on each device"
    for step in one.training:
        yield from _step_lines(step)
    if one.rows:
        yield f"    sampling: {one.rows} requests of 2,048 tokens at a time, caches of {one.caches / _GB:.2f} GB"


def _step_lines(step: Training) -> Iterator[str]:
    memory = step.memory
    parts = {"state": memory.state, "kept by layers": memory.kept, "working": memory.working}
    listed = ", ".join(f"{name} {size / _GB:.2f}" for name, size in parts.items())
    yield (
        f"    a training step of {step.what} on {step.tokens:,} tokens of each device: "
        f"{memory.total / _GB:.2f} GB ({listed})"
    )
    yield (
        f"    {step.flops / 1e12:.1f} TFLOP on each device, {step.traffic / _GB:.2f} GB from others, about "
        f"{step.seconds:.2f} s at {UTILISATION:.0%} of the peak"
    )
