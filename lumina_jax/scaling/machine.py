"""What a run costs on a machine: seconds of a step, bytes of a device, and on many devices their mesh.

In: the name of a chip, a topology, or the devices that are here. Out: the `Machine` of a grid, and a function from the
configuration of a run to its `Cost`.

Without a measurement or a topology, a step takes its model FLOPs at a share of the peak, the utilisation. With a
topology, mesh, rematerialisation and micro-batches are those that `aot/search.py` judges fastest; a step then takes
that estimate, or its FLOPs at the utilisation, whichever is longer.
"""

import functools
import os
import statistics
from collections.abc import Callable
from typing import NamedTuple

from lumina_jax.aot.flops import Load
from lumina_jax.chips import CHIPS, Topology
from lumina_jax.config import Config, MeshConfig
from lumina_jax.config.section import require, require_between
from lumina_jax.scaling.grid import Machine

HERE = "here"
MEASURED_STEPS, WARMUP_STEPS = 3, 1


class Cost(NamedTuple):
    """The cost of a step of a run."""

    step_seconds: float
    memory: float
    """Bytes of a device, by estimate unless the program was compiled."""
    mesh: MeshConfig | None = None
    remat: str | None = None
    accumulate: int | None = None


Coster = Callable[[Config, Load, float], Cost]
"""The cost of a run: of its configuration, its batch and the FLOPs of its step."""


def machine_of(name: str, utilisation: float, dtype: str) -> Machine:
    """The machine of a name: a chip of `chips.py`, or "here", whose peak is published or measured now.

    Raises:
      ValueError: there is no such chip, or the utilisation is no share.
    """
    require_between("--utilisation", utilisation, 1e-3, 1, "0.4 is usual on TPUs")
    if name in CHIPS:
        chip = CHIPS[name]
        return Machine(
            name=name, flops=chip.flops, utilisation=utilisation, memory=float(chip.hbm_usable), source=chip.source
        )
    require(name == HERE, f"--device must be {HERE!r} or one of {', '.join(CHIPS)}, but is {name!r}")
    import jax

    from lumina_jax.throughput.peak import present_peak

    peak, devices = present_peak(dtype), jax.device_count()
    cores = len(os.sched_getaffinity(0))
    return Machine(
        name=f"{cores} core{'s' * (cores > 1)} of this CPU" if peak.device == "cpu" else f"{devices} {peak.device}",
        flops=devices * peak.flops,
        utilisation=utilisation,
        memory=peak.memory,
        source=peak.source,
    )


def pod_of(topology: Topology, utilisation: float) -> Machine:
    """All devices of a topology."""
    chip = topology.chip
    return Machine(
        name=topology.name,
        flops=topology.devices * chip.flops,
        utilisation=utilisation,
        memory=float(chip.hbm_usable),
        source=chip.source,
    )


def assumed(machine: Machine) -> Coster:
    """Costs by the utilisation of the machine."""

    def cost(config: Config, load: Load, step_flops: float) -> Cost:
        return Cost(step_flops / (machine.flops * machine.utilisation), _memory(config, load))

    return cost


def measured(say: Callable[[str], None]) -> Coster:
    """Costs measured with a few steps on the devices that are here; runs with the same step are measured once."""
    known: dict[tuple[Config, Load], float] = {}

    def cost(config: Config, load: Load, step_flops: float) -> Cost:
        from lumina_jax.throughput.train import prepared_step, timed

        if (config, load) not in known:
            times = timed(prepared_step(config).once, MEASURED_STEPS, WARMUP_STEPS)
            known[config, load] = statistics.median(times)
            model = config.model
            say(
                f"measured {model.block} {model.layers}x{model.width}, {load.rows} samples a step: "
                f"{known[config, load]:.4g} s a step, {step_flops / known[config, load] / 1e9:.3g} GFLOP/s"
            )
        return Cost(known[config, load], _memory(config, load))

    return cost


def on_pod(topology: Topology, machine: Machine, compiles: int, say: Callable[[str], None]) -> Coster:
    """Costs on the devices of a topology.

    Args:
      compiles: the most programs to compile for each step (`aot/search.py`); 0: estimates alone, for which no compiler
        is needed.
    """

    @functools.cache
    def found(config: Config) -> tuple[Config, float, float]:
        return _compiled(config, topology, compiles, say) if compiles else _guessed(config, topology)

    def cost(config: Config, load: Load, step_flops: float) -> Cost:
        best, seconds, memory = found(config)
        seconds = max(seconds, step_flops / (machine.flops * machine.utilisation))
        return Cost(seconds, memory, best.mesh, best.model.remat, best.optimizer.accumulate)

    return cost


def _guessed(config: Config, topology: Topology) -> tuple[Config, float, float]:
    """The configuration with the mesh that is fastest by estimate among those that fit, seconds of a step and bytes."""
    from lumina_jax.aot.plan import Plan
    from lumina_jax.aot.search import MEMORY_SHARE, described_devices, guesses, rank

    plan = Plan(config=config, topology=topology)
    every = sorted(guesses(plan, described_devices(topology)), key=rank)
    fitting = [guess for guess in every if guess.memory <= MEMORY_SHARE * topology.chip.hbm_usable]
    require(
        bool(fitting),
        f"no mesh of the {topology.devices} devices of {topology.name} holds a step of {config.data.batch_rows} "
        f"samples of the size {config.model.layers}x{config.model.width}; choose a topology of more devices or of "
        "chips with more memory, or a smaller size",
    )
    best = fitting[0]
    return best.plan.config, best.seconds, best.memory


def _compiled(
    config: Config, topology: Topology, compiles: int, say: Callable[[str], None]
) -> tuple[Config, float, float]:
    """As `_guessed`, from a program that was compiled."""
    from lumina_jax.aot.plan import Plan
    from lumina_jax.aot.search import search

    say(f"{config.model.layers}x{config.model.width}, {config.data.batch_rows} samples a step, on {topology.name}:")
    report = search(Plan(config=config, topology=topology), compiles, say)
    return report.plan.config, report.estimate.expected, report.memory.total


def _memory(config: Config, load: Load) -> float:
    """Bytes of a device that does all the work alone."""
    from lumina_jax.aot.search import Shares, device_bytes, held_parameters

    micro = config.optimizer.accumulate
    tokens = load.rows * load.tokens / micro
    return device_bytes(config.model, Shares(1, 1, 1, 1, 1), tokens, held_parameters(config), micro)


def fits(memory: float, machine: Machine) -> bool:
    return machine.memory is None or memory <= machine.memory
