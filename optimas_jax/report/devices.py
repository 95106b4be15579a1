"""The device part of a plan in lines for the console, from its JSON (``loop.forecast.device.DevicePlan``)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

_GB = 2**30


def device_lines(plan: Mapping[str, Any] | None) -> Iterator[str]:
    """Lines about local models on the devices; ``plan`` is None where no devices were named."""
    if plan is None:
        yield "--devices=NAME (h100, 8xa100-80, v5e-16) says whether local models fit, and how long a step takes"
        return
    if not plan["models"]:
        yield "no devices are needed: servers answer everything"
        return
    data, model = plan["mesh"]
    yield f"{plan['count']} x {plan['kind']['name']}, mesh {data} x {model} (data x model)"
    for local_model in plan["models"]:
        yield from _model_lines(local_model, plan["utilisation"])
    verdict = "fits" if plan["fits"] else f"does not fit: {plan['way_out']}"
    needed, memory = plan["needed"] / _GB, plan["kind"]["memory"] / _GB
    yield f"memory: {needed:.1f} GB of {memory:.1f} GB on each device (estimated): {verdict}"


def _model_lines(model: Mapping[str, Any], utilisation: float) -> Iterator[str]:
    weights = f"{model['parameters'] / 1e9:.2f} billion weights, {model['weights'] / _GB:.2f} GB on each device"
    yield f"  {model['spec']}: {weights}"
    for step in model["training"]:
        yield from _step_lines(step, utilisation)
    if model["rows"]:
        caches = model["caches"] / _GB
        yield f"    sampling: {model['rows']} requests of 2,048 tokens at a time, caches of {caches:.2f} GB"


def _step_lines(step: Mapping[str, Any], utilisation: float) -> Iterator[str]:
    memory = step["memory"]
    parts = {"state": memory["state"], "kept by layers": memory["kept"], "working": memory["working"]}
    listed = ", ".join(f"{name} {size / _GB:.2f}" for name, size in parts.items())
    total = sum(parts.values()) / _GB
    yield f"    a step of {step['what']} on {step['tokens']:,} tokens of each device: {total:.2f} GB ({listed})"
    yield (
        f"    {step['flops'] / 1e12:.1f} TFLOP on each device, {step['traffic'] / _GB:.2f} GB from others, about "
        f"{step['seconds']:.2f} s at {utilisation:.0%} of the peak"
    )
