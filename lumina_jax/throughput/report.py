"""What was measured about a program: its speed, its memory and where its time goes; in words, as JSON, and compared.

In: the times of a `TimedProgram` and its FLOPs. Out: a `Throughput`, and its lines.
"""

import dataclasses
import json
import resource
import statistics
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import jax

from lumina_jax.documents import read_json
from lumina_jax.throughput.peak import Peak
from lumina_jax.throughput.train import TimedProgram

GB = 1e9


@dataclasses.dataclass(frozen=True, kw_only=True)
class Throughput:
    """One program on the devices that were there."""

    what: Literal["train", "sample"]
    """A training step, or the drawing of a batch."""
    device: str
    devices: int
    config: dict[str, Any]
    samples: int
    """Samples of a run of the program."""
    tokens: int
    """Tokens of all of them."""
    seconds: float
    """Of a run; the median."""
    seconds_low: float
    """The fastest run."""
    seconds_high: float
    """The slowest run."""
    runs: int
    compile_seconds: float
    model_flops: float
    """Floating point operations of a run (`aot/flops.py`)."""
    peak_flops: float
    """A second, of all devices."""
    peak_source: str
    program_bytes: float
    """Of a device: arguments, results and temporaries of the program."""
    device_bytes: float | None
    """The most that the device had in use, if it says so."""
    process_bytes: float
    """The most memory that this process had on the host."""
    kinds: dict[str, float]
    """Busy seconds of a run by kind; none without a trace."""

    @property
    def samples_per_second(self) -> float:
        return self.samples / self.seconds

    @property
    def tokens_per_second(self) -> float:
        return self.tokens / self.seconds

    @property
    def utilisation(self) -> float:
        """Model FLOPs utilisation (MFU)."""
        return self.model_flops / self.seconds / self.peak_flops

    def to_json(self) -> str:
        rates = {name: getattr(self, name) for name in ("samples_per_second", "tokens_per_second", "utilisation")}
        return json.dumps(dataclasses.asdict(self) | rates, indent=2) + "\n"


def throughput(
    what: Literal["train", "sample"],
    config: dict[str, Any],
    program: TimedProgram,
    times: Sequence[float],
    model_flops: float,
    peak: Peak,
    kinds: dict[str, float],
) -> Throughput:
    """All that was measured, together."""
    stats, load, devices = program.compiled.memory_analysis(), program.load, program.mesh.size
    in_use = jax.devices()[0].memory_stats() or {}
    return Throughput(
        what=what,
        device=peak.device,
        devices=devices,
        config=config,
        samples=load.rows * load.samples,
        tokens=load.rows * load.tokens,
        seconds=statistics.median(times),
        seconds_low=min(times),
        seconds_high=max(times),
        runs=len(times),
        compile_seconds=program.compile_seconds,
        model_flops=model_flops,
        peak_flops=devices * peak.flops,
        peak_source=peak.source,
        program_bytes=float(
            stats.argument_size_in_bytes
            + stats.temp_size_in_bytes
            + stats.output_size_in_bytes
            - stats.alias_size_in_bytes
        ),
        device_bytes=float(in_use["peak_bytes_in_use"]) if "peak_bytes_in_use" in in_use else None,
        process_bytes=1024.0 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss,
        kinds=kinds,
    )


def read_throughput(file: Path) -> Throughput:
    """What `--json` wrote.

    Raises:
      ValueError: there is no such file, or it is another one.
    """
    if not file.is_file():
        raise ValueError(f"there is no {file}; write one with `lumina bench train CONFIG --json {file}`")
    found: Throughput = read_json(file, Throughput)
    return found


def throughput_lines(found: Throughput) -> Iterator[str]:
    """The measurement in words."""
    noun = "training step" if found.what == "train" else "drawing"
    yield (
        f"{noun} of {found.samples:,} samples, {found.tokens:,} tokens, on {found.devices} {found.device}; compiled in "
        f"{found.compile_seconds:.1f} s"
    )
    yield (
        f"{found.seconds:.4g} s, median of {found.runs} from {found.seconds_low:.4g} to {found.seconds_high:.4g} s: "
        f"{found.samples_per_second:.4g} samples/s, {found.tokens_per_second:.4g} tokens/s"
    )
    yield (
        f"model FLOPs {found.model_flops:.4g}, {found.model_flops / found.seconds / 1e12:.4g} TFLOP/s: "
        f"{found.utilisation:.1%} of {found.peak_flops / 1e12:.4g} TFLOP/s ({found.peak_source})"
    )
    in_use = f", {found.device_bytes / GB:.3g} GB in use at most" if found.device_bytes is not None else ""
    yield (
        f"memory of the program {found.program_bytes / GB:.3g} GB a device{in_use}; of this process "
        f"{found.process_bytes / GB:.3g} GB at most"
    )
    total = sum(found.kinds.values())
    for kind, seconds in sorted(found.kinds.items(), key=lambda item: -item[1]):
        yield f"  {seconds / total:6.1%}  {seconds:.4g} s  {kind}"


def comparison(new: Throughput, old: Throughput) -> Iterator[str]:
    """What changed, as ratios of new to old.

    Raises:
      ValueError: one is of training, the other of drawing.
    """
    if new.what != old.what:
        raise ValueError(
            f"a measurement of {new.what} must be compared with one of the same, but the old is {old.what}"
        )
    for name in ("device", "devices", "samples", "tokens"):
        before, now = getattr(old, name), getattr(new, name)
        if before != now:
            yield f"not alike: {name} was {before} and is {now}"
    for section, settings in new.config.items():
        before = old.config.get(section)
        if isinstance(settings, dict) and isinstance(before, dict):
            yield from (
                f"not alike: {section}.{name} was {before.get(name)} and is {value}"
                for name, value in settings.items()
                if before.get(name) != value
            )
    for words, name in (
        ("seconds", "seconds"), ("samples/s", "samples_per_second"), ("tokens/s", "tokens_per_second"),
        ("utilisation", "utilisation"), ("memory of the program", "program_bytes"), ("compile", "compile_seconds"),
    ):  # fmt: skip
        yield _ratio(words, getattr(old, name), getattr(new, name))
    for kind in new.kinds:
        if kind in old.kinds:
            yield _ratio(f"  {kind}", old.kinds[kind], new.kinds[kind])


def _ratio(words: str, old: float, new: float) -> str:
    return f"{words:<45} {old:>10.4g} -> {new:<10.4g} {f'x {new / old:.3f}' if old else ''}".rstrip()
