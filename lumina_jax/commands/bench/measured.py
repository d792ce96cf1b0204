"""The flags and the work that `lumina bench train` and `lumina bench sample` share."""

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import tyro

from lumina_jax.config import Config
from lumina_jax.failures import reported
from lumina_jax.flags import parse_config
from lumina_jax.launch import keep_memory_on_cpu


@dataclass(frozen=True)
class Arguments:
    runs: int = 10
    """Runs that are timed."""
    warmup: int = 2
    """Runs before them."""
    trace_runs: int = 3
    """Runs of which a trace shows where their time goes; 0: no trace."""
    trace: Path | None = None
    """Keep the trace in this folder, for TensorBoard or https://ui.perfetto.dev."""
    json: Path | None = None
    """Write all numbers into this file."""
    compare: Path | None = None
    """A file that --json wrote before: print what changed."""
    tolerance: float = 0.1
    """With --compare: exit with 1 if there are fewer samples a second than by this share."""


def bench(what: Literal["train", "sample"], words: Sequence[str], description: str) -> int:
    """Measure, print, write, compare."""
    flags = words if not words or words[0].startswith("-") else words[1:]
    program = f"lumina bench {what} CONFIG"
    arguments, rest = tyro.cli(
        Arguments, args=list(flags), prog=program, description=description, return_unknown_args=True
    )
    with reported():
        keep_memory_on_cpu()  # first: it starts this program again
        config = parse_config([*words[:1], *rest], description, command=f"bench {what}")
        check(arguments)
        status = run(what, config, arguments)
    return status


def check(arguments: Arguments) -> None:
    """Refuse arguments that cannot work.

    Raises:
      ValueError: a number is out of range.
    """
    for name, least in (("runs", 1), ("warmup", 0), ("trace_runs", 0)):
        value = getattr(arguments, name)
        if value < least:
            raise ValueError(f"--{name.replace('_', '-')}={value} must be at least {least}")
    if not 0 < arguments.tolerance < 1:
        raise ValueError(f"--tolerance={arguments.tolerance} must lie between 0 and 1; 0.1 is usual")


def run(what: Literal["train", "sample"], config: Config, arguments: Arguments) -> int:
    """1 if the program became slower than the tolerance allows. jax is imported here."""
    from lumina_jax.aot.flops import step_flops
    from lumina_jax.aot.plan import drawing_flops
    from lumina_jax.throughput.kinds import seconds_by_kind
    from lumina_jax.throughput.peak import present_peak
    from lumina_jax.throughput.report import comparison, read_throughput, throughput, throughput_lines
    from lumina_jax.throughput.sample import prepared_sampler
    from lumina_jax.throughput.train import prepared_step, timed

    old = None if arguments.compare is None else read_throughput(arguments.compare)
    if what == "train":
        program = prepared_step(config)
        flops = step_flops(config.model, program.load, frozen=config.finetune.is_partial).total
    else:
        program = prepared_sampler(config)
        flops = drawing_flops(config, program.load)
    peak = present_peak(config.model.compute_dtype)
    times = timed(program.once, arguments.runs, arguments.warmup)
    kinds = {}
    if arguments.trace_runs:
        kinds = seconds_by_kind(program.compiled, program.once, arguments.trace_runs, arguments.trace)
    settings = json.loads(json.dumps(dataclasses.asdict(config)))
    found = throughput(what, settings, program, times, flops, peak, kinds)
    print("\n".join(throughput_lines(found)), flush=True)
    if arguments.json is not None:
        arguments.json.write_text(found.to_json())
        print(f"{arguments.json} holds every number")
    if old is None:
        return 0
    print("\n".join(comparison(found, old)), flush=True)
    return 1 if found.samples_per_second < (1 - arguments.tolerance) * old.samples_per_second else 0
