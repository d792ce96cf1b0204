"""lumina aot CONFIG --topology v5p:8x8x8: compile the train step for TPUs that are not attached.

Prints the expected time of a step, how a device's memory is used, and which collectives a step runs; fails if the
program does not fit, and says what would help. Any setting of the configuration is a flag, as for `lumina train`:
--model.remat none, --mesh.fsdp 256, --optimizer.accumulate 2. Needs no TPU, only libtpu: make aot-setup
"""

import dataclasses
import json
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import tyro

from lumina_jax.chips import parse_topology
from lumina_jax.config import Config, MeshConfig
from lumina_jax.config_files import recommended_flags
from lumina_jax.failures import reported
from lumina_jax.flags import parse_config
from lumina_jax.libtpu import add_libtpu

if TYPE_CHECKING:
    from lumina_jax.aot.plan import Plan, Report


@dataclass(frozen=True)
class Arguments:
    topology: str = ""
    """Chips and the shape of the slice: v5e:16x16, v5p:4x4x8, v6e:16x16, v4:4x4x4, tpu7x:4x4x4."""
    memory: str | None = None
    """Instead of a topology the memory of one device of any kind, such as 12GB: say how many rows of a training batch
    fit by estimate, with each base and remat policy. Nothing is compiled."""
    tokens: int | None = None
    """Tokens in a row; default: data.row_tokens, or what a sample needs."""
    rows: int | None = None
    """Rows of a batch; default: data.batch_rows."""
    sampler: bool = False
    """Compile the drawing of a batch instead of the train step, on the mesh of `lumina sample`: without flags --mesh.*
    every device has all weights."""
    quick: bool = False
    """Check the fit only: compile with the least effort, several times faster. Speeds are then too low."""
    search: bool = False
    """Try meshes, remat policies and micro-batches, and recommend one."""
    compiles: int = 5
    """Candidates of a search that are compiled; that of the least expected time is recommended."""
    vae_factor: int = 8
    """Pixels along one side of a value of the latent, if vae.path names an autoencoder."""
    json: Path | None = None
    """Write all numbers into this file."""
    hlo: Path | None = None
    """Write the compiled program, as text, into this file."""
    breakdown: bool = False
    """Print the dearest instructions and lines of Python, with their time, cycles, bytes and FLOPs; --json has all."""


def main(words: Sequence[str]) -> int:
    arguments, rest = tyro.cli(
        Arguments, args=_without_config(words), prog="lumina aot CONFIG", description=__doc__,
        return_unknown_args=True,
    )  # fmt: skip
    with reported():
        config = parse_config([*words[:1], *rest], __doc__ or "", command="aot", on_cpu=False)
        if arguments.sampler and not any(word.startswith("--mesh.") for word in rest):
            config = config.replace(mesh=dataclasses.asdict(MeshConfig()))  # as `lumina sample`, not as the run trained
        for name in ("vae_factor", "compiles"):
            if getattr(arguments, name) < 1:
                raise ValueError(f"{name}={getattr(arguments, name)} must be at least 1")
        if bool(arguments.topology) == (arguments.memory is not None):
            raise ValueError("give --topology, to compile for TPUs, or --memory, to estimate for a device of that size")
        if arguments.memory is not None:
            return estimate(arguments, config)
        os.environ.update(parse_topology(arguments.topology).environment)
        status = run(arguments, config, words[0])
    return status


def estimate(arguments: Arguments, config: Config) -> int:
    """Print how many rows fit `--memory`; 0 if those of the command line, or else one, do."""
    from lumina_jax.aot.capacity import capacities, capacity_lines, parsed_memory, recommended

    if arguments.sampler or arguments.search:
        raise ValueError("--memory estimates a training step, without a search or a sampler; leave these out")
    memory, rows = parsed_memory(arguments.memory or ""), arguments.rows or 1
    config = _changed(config, arguments)
    _say(capacity_lines(config, memory, rows, arguments.vae_factor))
    return 0 if recommended(capacities(config, memory, arguments.vae_factor), rows) else 1


def run(arguments: Arguments, config: Config, name: str) -> int:
    """0 if the plan fits. jax is imported here, after its environment was set."""
    if "jax" in sys.modules:
        raise ValueError(
            "jax was imported before the environment of libtpu was set; run this command in its own process"
        )
    add_libtpu()
    from lumina_jax.aot.breakdown import breakdown_json, breakdown_lines
    from lumina_jax.aot.plan import DoesNotFitError, Plan, compile_plan
    from lumina_jax.aot.report import as_json, failure_lines, report_lines

    plan = Plan(
        config=_changed(config, arguments),
        topology=parse_topology(arguments.topology),
        sampler=arguments.sampler,
        quick=arguments.quick,
        vae_factor=arguments.vae_factor,
    )
    if not arguments.search:
        _check_mesh(plan, recommended_flags(name, plan.topology.name))
    try:
        report = _searched(plan, arguments.compiles) if arguments.search else compile_plan(plan)
    except DoesNotFitError as error:
        _say(failure_lines(plan, error))
        if arguments.json is not None:
            found = {"fits": False, "needed_bytes": error.needed, "config": dataclasses.asdict(plan.config)}
            arguments.json.write_text(json.dumps(found, indent=2) + "\n")
        return 1
    _say(report_lines(report))
    clock = plan.topology.chip.clock
    if arguments.breakdown:
        _say(breakdown_lines(report.timeline, clock))
    if arguments.hlo is not None:
        arguments.hlo.write_text(report.program)
    if arguments.json is not None:
        breakdown = {"breakdown": breakdown_json(report.timeline, clock)} if arguments.breakdown else {}
        arguments.json.write_text(json.dumps(as_json(report) | breakdown, indent=2) + "\n")
    return 0 if report.fits else 1


def _check_mesh(plan: "Plan", recommended: str | None) -> None:
    """Refuse a mesh that does not suit the topology, and name one that does: by `recommended` flags, if any."""
    from lumina_jax.aot.plan import devices_of, plan_mesh
    from lumina_jax.aot.search import suggested_mesh

    devices = devices_of(plan.topology)
    try:
        plan_mesh(plan, devices)
    except ValueError as error:
        better = recommended or suggested_mesh(plan, devices)
        if better is None:
            raise
        raise ValueError(f"{error}. On {plan.topology.name} this would do: {better}") from error


def _searched(plan: "Plan", compiles: int) -> "Report":
    from lumina_jax.aot.search import search

    return search(plan, compiles, say=lambda line: print(line, flush=True))


def _changed(config: Config, arguments: Arguments) -> Config:
    """The configuration with the rows and tokens of the arguments."""
    changes: dict[str, int] = {}
    if arguments.rows is not None:
        changes["batch_rows"] = arguments.rows
    if arguments.tokens is not None:
        changes["row_tokens"] = arguments.tokens
    return config.replace(data=changes)


def _without_config(words: Sequence[str]) -> list[str]:
    """The words after the name of the configuration."""
    return list(words) if not words or words[0].startswith("-") else list(words[1:])


def _say(lines: object) -> None:
    for line in lines:  # type: ignore[attr-defined]
        print(line, flush=True)
