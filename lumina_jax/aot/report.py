"""A compiled plan in words, and as JSON."""

import dataclasses
from collections.abc import Iterator
from typing import Any

from lumina_jax.aot.flops import forward_flops, step_flops
from lumina_jax.aot.plan import DoesNotFitError, Plan, Report
from lumina_jax.aot.roofline import ASSUMPTIONS, attention_efficiency
from lumina_jax.models.precision import weights_type
from lumina_jax.training.header import trained_line
from lumina_jax.training.state import parameter_count

GB = 1e9
MATRIX_BYTES = {"float32": 4.0, "bfloat16": 2.0, "int8": 1.0, "nf4": 4.25 / 8}
STATE_BYTES = 20.0
"""Of each parameter that trains: its value, average, two moments and gradient."""
WEIGHT_COLLECTIVES = ("all-gather", "reduce-scatter", "all-reduce")
"""Collectives of FSDP. Those of sequence and tensor parallelism are of other kinds."""
KINDS = {
    "parameters": "parameters",
    "base": "parameters that do not train",
    "average": "moving average of the parameters",
    "moments": "optimiser",
    "inputs": "batch",
    "activations": "activations kept for the backward pass",
    "gradients": "gradients",
    "temporaries": "temporaries",
    "outputs": "outputs",
    "program": "program",
}


def mesh_words(plan: Plan) -> str:
    """The sizes of the mesh, such as fsdp=64, and data, which has the devices that are left."""
    sizes = {name: size for name, size in dataclasses.asdict(plan.mesh).items() if size > 1}
    return ", ".join(f"{name}={size}" for name, size in sizes.items()) or "data only"


def plan_words(plan: Plan) -> str:
    """One line: the program, the batch and the topology."""
    load, config = plan.load, plan.config
    what = "train step"
    if config.finetune.is_partial:
        what = f"train step of {trained_line(config)}"
    if plan.sampler:
        weights = weights_type(config.model, config.sample.weights)
        what = f"{config.sample.steps} {config.sample.solver} steps of sampling with {weights} weights"
    rows = f"{load.rows} rows of {load.tokens} tokens"
    packed = f", {load.samples} samples each" if load.samples > 1 else ""
    micro = f", {config.optimizer.accumulate} micro-batches" if config.optimizer.accumulate > 1 else ""
    return (
        f"{what}: {rows}{packed}{micro}; {plan.topology.name} ({plan.topology.devices} devices), {mesh_words(plan)}, "
        f"remat {config.model.remat}, attention {config.model.attention}{', quick compile' if plan.quick else ''}"
    )


def report_lines(report: Report) -> Iterator[str]:
    """The whole report."""
    yield plan_words(report.plan)
    yield from _expected_lines(report)
    lines = report.program.count("\n")
    yield f"compiled in {report.compile_seconds:.0f} s to {lines} lines of HLO"
    yield from _memory_lines(report)
    yield from _collective_lines(report)
    yield from _flops_lines(report)
    yield from _roofline_lines(report)


def failure_lines(plan: Plan, error: DoesNotFitError) -> Iterator[str]:
    """By how much a plan doesn't fit, and what would help, most effective first."""
    limit = plan.topology.chip.hbm_usable
    yield plan_words(plan)
    if error.needed is None:
        yield f"does NOT fit: more than the {limit / GB:.2f} GB of a device; the compiler: {error}"
    else:
        over = error.needed - limit
        yield f"does NOT fit: {error.needed / GB:.2f} GB of {limit / GB:.2f} GB a device, {over / GB:.2f} GB too much"
    yield from (f"  would help: {line}" for line in remedies(plan))


def remedies(plan: Plan) -> list[str]:
    """Changes that lower the memory of a device, with the bytes that they save where these can be counted."""
    config, model, load = plan.config, plan.config.model, plan.load
    devices = plan.topology.devices
    rows = max(1, load.rows // config.optimizer.accumulate)
    kept = 2 * load.tokens * model.width * model.layers * rows / devices
    found, held = [], held_as(plan)
    if held is not None and held != "nf4":
        smaller = "nf4" if held == "int8" else "int8"
        saved = (MATRIX_BYTES[held] - MATRIX_BYTES[smaller]) * parameter_count(model)
        name = "sample.weights" if plan.sampler else "finetune.base"
        found.append(f"--{name} {smaller}: matrices of the layers in codes, about {saved / GB:.2f} GB less")
    if model.remat not in ("full", "offload") and not plan.sampler:
        found.append(f"--model.remat full, which keeps only the input of each layer ({kept / GB:.2f} GB a device)")
    elif model.remat == "full" and not plan.sampler:
        found.append(f"--model.remat offload: those inputs wait in the memory of the host, {kept / GB:.2f} GB less")
    if not plan.sampler and load.rows > config.optimizer.accumulate:
        twice = 2 * config.optimizer.accumulate
        found.append(f"--optimizer.accumulate {twice}: half the rows at once, about {kept / 2 / GB:.2f} GB less")
    if load.rows > devices:
        found.append(f"fewer rows (--rows {load.rows // 2}): half of what each device works on")
    mesh = plan.mesh
    fsdp = mesh.fsdp or 1
    shards = fsdp * mesh.sequence * mesh.tensor
    if shards < devices:
        state = (STATE_BYTES if held is None else MATRIX_BYTES[held]) * parameter_count(model) / GB
        what = "parameters, average, moments and gradients" if held is None else "parameters"
        found.append(
            f"--mesh.fsdp {fsdp * devices // shards}: {what} over all, {state / shards - state / devices:.2f} GB less"
        )
    elif rows <= fsdp and not plan.sampler:
        found.append(f"--mesh.sequence {2 * mesh.sequence} --mesh.fsdp {max(1, fsdp // 2)}: fewer tokens a device")
    found.append(f"a topology of more devices than {devices}, or of chips with more memory")
    return found


def held_as(plan: Plan) -> str | None:
    """The type of the matrices of parameters that do not train; None: all train."""
    config = plan.config
    if plan.sampler:
        return weights_type(config.model, config.sample.weights)
    return config.finetune.base if config.finetune.is_partial else None


def as_json(report: Report) -> dict[str, Any]:
    """All numbers of a report, for a file."""
    plan, roofline = report.plan, report.estimate
    sent = [
        one._asdict() | {"sent_bytes": one.times * one.sent_bytes(plan.topology.devices)} for one in report.collectives
    ]
    for one in sent:
        one["group"] = len(one["groups"][0]) if one["groups"] else plan.topology.devices
        del one["groups"]
    return {
        "topology": plan.topology.name,
        "devices": plan.topology.devices,
        "sampler": plan.sampler,
        "quick": plan.quick,
        "config": dataclasses.asdict(plan.config),
        "load": dataclasses.asdict(report.load),
        "fits": report.fits,
        "hbm_bytes": plan.topology.chip.hbm_usable,
        "memory": dataclasses.asdict(report.memory) | {"total": report.memory.total},
        "collectives": sent,
        "work": report.work._asdict(),
        "model_flops": report.model_flops,
        "estimate": roofline._asdict()
        | {
            "by_kind": report.timeline.by_kind(),
            "samples_per_second": _rate(report),
            "at_least": roofline.at_least,
            "one_after_another": roofline.one_after_another,
            "bound": roofline.bound,
        },
        "assumptions": list(ASSUMPTIONS),
        "compile_seconds": report.compile_seconds,
        "program_lines": report.program.count("\n"),
    }


def _expected_lines(report: Report) -> Iterator[str]:
    found, what = report.estimate, _what(report.plan)
    yield (
        f"expected {found.expected:.4g} s a {what}, MFU {found.mfu:.1%}, {_rate(report):.4g} samples/s; nothing was "
        f"run on a TPU{', and a quick compile is slower' if report.plan.quick else ''}"
    )
    parts = report.timeline.by_kind()
    yield "  " + ", ".join(f"{kind} {seconds:.4g} s" for kind, seconds in parts.items())
    yield f"  {found.compiled:.4g} s of it by the compiler's cycles, with kernels at their peak"


def _what(plan: Plan) -> str:
    return "sampling" if plan.sampler else "step"


def _rate(report: Report) -> float:
    """Samples a second."""
    return report.load.rows * report.load.samples / report.estimate.expected


def _memory_lines(report: Report) -> Iterator[str]:
    total, limit = report.memory.total, report.plan.topology.chip.hbm_usable
    verdict = (
        f"fits, {(limit - total) / GB:.2f} GB left"
        if report.fits
        else f"does NOT fit, {(total - limit) / GB:.2f} GB too much"
    )
    yield f"memory of a device: {total / GB:.2f} of {limit / GB:.2f} GB: {verdict}"
    for kind, words in KINDS.items():
        size = getattr(report.memory, kind)
        if size > limit / 10_000:
            yield f"  {size / GB:9.3f} GB  {words}"
    if report.memory.host:
        yield f"  {report.memory.host / GB:9.3f} GB  in the memory of the host"
    if not report.fits:
        yield from (f"  would help: {line}" for line in remedies(report.plan))


def _collective_lines(report: Report) -> Iterator[str]:
    devices = report.plan.topology.devices
    rows: dict[tuple[str, str, int], list[float]] = {}
    for one in report.collectives:
        row = rows.setdefault(
            (one.kind, one.dtype, one.size(devices) if one.kind != "collective-permute" else 2), [0, 0.0]
        )
        row[0] += one.times
        row[1] += one.times * one.sent_bytes(devices)
    total = sum(sent for _, sent in rows.values())
    yield f"collectives of a step: a device sends {total / GB:.3f} GB"
    for (kind, dtype, size), (times, sent) in sorted(rows.items(), key=lambda item: -item[1][1]):
        if sent > total / 10_000:
            yield f"  {sent / GB:9.3f} GB  {kind} of {dtype} among {size}, {times:.0f} times"
    ideal = ideal_fsdp_bytes(report)
    if ideal:
        mesh = report.plan.mesh
        counted = (
            WEIGHT_COLLECTIVES
            if mesh.tensor * mesh.sequence > 1
            else (*WEIGHT_COLLECTIVES, "all-to-all", "collective-permute")
        )
        sent = sum(sent for (kind, *_), (_, sent) in rows.items() if kind in counted)
        which = "those of weights are" if counted == WEIGHT_COLLECTIVES else "that is"
        yield (
            f"  {which} {sent / ideal:.2f} times the ideal of FSDP: {ideal / GB:.3f} GB, weights "
            f"gathered twice and gradients scattered once, in bfloat16"
        )


def ideal_fsdp_bytes(report: Report) -> float:
    """What a device must send if each micro-batch gathers weights in bfloat16 for the forward and for the backward
    pass, and scatters their gradients in bfloat16; 0 without FSDP."""
    config, mesh = report.plan.config, report.plan.mesh
    shards = (mesh.fsdp or 1) * mesh.sequence
    if report.plan.sampler or shards == 1:
        return 0.0
    return 3 * 2 * report.parameters / mesh.tensor * (shards - 1) / shards * config.optimizer.accumulate


def _flops_lines(report: Report) -> Iterator[str]:
    plan = report.plan
    done, devices = report.work, plan.topology.devices
    yield f"model FLOPs: {report.model_flops:.4g}, {report.model_flops / devices:.4g} a device"
    model, frozen = plan.config.model, plan.config.finetune.is_partial
    parts = forward_flops(model, report.load) if plan.sampler else step_flops(model, report.load, frozen=frozen)
    shares = {name: value / parts.total for name, value in dataclasses.asdict(parts).items()}
    yield "  " + ", ".join(f"{name.replace('_', ' ')} {share:.1%}" for name, share in shares.items())
    products = done.product_flops + done.token_product_flops
    total = products + done.batched_flops + done.kernel_flops
    yield (
        f"  the program does {total:.4g} a device, {total * devices / report.model_flops:.2f} times as many with what "
        f"it computes again: products {products:.4g}, batched {done.batched_flops:.4g}, kernels "
        f"{done.kernel_flops:.4g}"
    )
    if done.silent_kernels:
        yield f"  {done.silent_kernels} kernels have no CostEstimate and count as nothing: arithmetic is underestimated"
    if done.unknown_loops:
        yield (
            f"  {done.unknown_loops} loops end when they find that they are done; the outermost count sample.steps "
            "times, those within as often as the solver calls the network in a step"
        )


def _roofline_lines(report: Report) -> Iterator[str]:
    plan, found = report.plan, report.estimate
    chip = plan.topology.chip
    efficiency = attention_efficiency(plan.config.model.head_width, plan.topology)
    gigabytes, bandwidth = report.work.hbm_bytes / GB, chip.hbm_bandwidth / GB
    yield (
        f"at least {found.at_least:.4g} s a {_what(plan)} (MFU {found.mfu_at_most:.1%}), limited by {found.bound}, if "
        f"all of it overlaps; one after another {found.one_after_another:.4g} s ({found.mfu_one_after_another:.1%})"
    )
    yield f"  arithmetic {found.arithmetic:.4g} s at {chip.flops / 1e12:.0f} TFLOP/s, attention at {efficiency:.0%}"
    yield f"  memory     {found.memory:.4g} s for {gigabytes:.4g} GB at {bandwidth:.0f} GB/s"
    yield (
        f"  links      {found.links:.4g} s at {chip.link_bandwidth / GB:.0f} GB/s a link and direction; those of the "
        f"busiest axis of the torus work {found.busiest_axis:.4g} s"
    )
    yield f"  chip numbers: {chip.source}; assumed:"
    yield from (f"   - {line}" for line in ASSUMPTIONS)
