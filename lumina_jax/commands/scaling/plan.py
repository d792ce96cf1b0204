"""lumina scaling plan CONFIG --budgets 1e13,3e13 --sizes 100K,300K,1M: a grid of runs, and what it costs.

Writes a file that `lumina scaling run` trains: each size under each budget, seed and recipe. A size is a number of
parameters (300K, 1.5M), which becomes the layers and width that keep the shape of CONFIG, or LAYERSxWIDTH (4x128). Any
setting of the configuration is a flag, as for `lumina train`: --data.batch-rows 64.
"""

import dataclasses
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import tyro

from lumina_jax.chips import Topology, parse_topology
from lumina_jax.config import Config
from lumina_jax.failures import reported
from lumina_jax.flags import parse_config
from lumina_jax.launch import runs_on_cpu
from lumina_jax.scaling.devices import device_sets

if TYPE_CHECKING:
    from lumina_jax.scaling.grid import Machine, ScalingGrid
    from lumina_jax.scaling.machine import Coster

HERE = "here"


@dataclass(frozen=True)
class Arguments:
    budgets: str
    """FLOPs of a run, with commas between them: 1e13,3e13,1e14."""
    sizes: str
    """Numbers of parameters, LAYERSxWIDTH or LAYERSxWIDTHxHEADS, with commas between them: 100K,1.5M,4x128."""
    out: Path = Path("grid.json")
    """The file of the grid. Its runs are trained into the folder in which it lies."""
    seeds: str = "0"
    """Seeds of the runs, with commas between them."""
    recipe: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """NAME, which is CONFIG as it is, or 'NAME: FLAGS', which is CONFIG under flags of `lumina train`, such as
    'uniform: --flow.times uniform'. Give it once for each recipe; default: the name of CONFIG."""
    recipes: Path | None = None
    """A YAML or JSON file with the flags of each recipe: {"NAME": "FLAGS"}."""
    curve: int = 8
    """How often the held-out loss is measured within a run; 0: only at its end."""
    batch_power: float = 0.0
    """Batches are data.batch_rows at the least budget, and grow with this power of the budget, in factors of 2."""
    width_power: float = 0.0
    """The learning rate is optimizer.learning_rate at the width of CONFIG, and falls with this power of the width."""
    batch_rate_power: float = 0.5
    """The learning rate grows with this power of the batch, where batches differ."""
    least_steps: int = 1
    """Leave out runs with fewer steps."""
    cores: int | None = None
    """Cores of each run on CPUs. They decide how sums are rounded, so that grids of the same cores give the same lines
    bit for bit. Default: 1 where jax runs on the CPU."""
    device: str = HERE
    """The device for which hours are estimated: here, v4, v5e, v5p, v6e or tpu7x."""
    utilisation: float = 0.4
    """The share of its peak that training is assumed to reach."""
    measure: bool = False
    """Measure a few steps of each size on the devices that are here, instead of assuming a utilisation."""
    topology: str | None = None
    """Plan for all devices of a topology, such as v5p:4x4x4, and choose mesh, remat and micro-batches of each run."""
    compile: bool = False
    """Compile the steps for the topology (needs libtpu: make aot-setup) instead of estimating them."""
    compiles: int = 4
    """Most programs to compile for each step, with --compile."""
    price: float | None = None
    """Price of a device for an hour, to print the cost of the grid."""


def main(words: Sequence[str]) -> int:
    flags = words if not words or words[0].startswith("-") else words[1:]
    arguments, rest = tyro.cli(
        Arguments, args=list(flags), prog="lumina scaling plan CONFIG", description=__doc__, return_unknown_args=True
    )
    with reported():
        topology = None if arguments.topology is None else parse_topology(arguments.topology)
        on_cpu = None if topology is None and arguments.device == HERE else False
        config = parse_config([*words[:1], *rest], __doc__ or "", command="scaling plan", on_cpu=on_cpu)
        check(arguments)
        if topology is not None:
            os.environ.update(topology.environment)
        elif arguments.device == HERE and runs_on_cpu():
            arguments = dataclasses.replace(arguments, cores=arguments.cores or 1)
            os.sched_setaffinity(0, device_sets(1, arguments.cores, on_cpu=True)[0].cores)  # what is measured here
        plan(words[0], config, arguments, topology)
    return 0


def check(arguments: Arguments) -> None:
    """Refuse arguments that cannot work together.

    Raises:
      ValueError: they cannot.
    """
    if arguments.compile and arguments.topology is None:
        raise ValueError("--compile compiles for a topology; name it with --topology, such as v5p:4x4x4")
    if arguments.measure and (arguments.topology is not None or arguments.device != HERE):
        raise ValueError("--measure measures the devices that are here; leave out --device and --topology")
    if arguments.compiles < 1 or arguments.curve < 0:
        raise ValueError(
            f"--compiles={arguments.compiles} must be at least 1, and --curve={arguments.curve} at least 0"
        )
    if arguments.cores is not None and arguments.cores < 1:
        raise ValueError(f"--cores={arguments.cores} must be at least 1")
    if arguments.price is not None and arguments.price <= 0:
        raise ValueError(f"--price={arguments.price} must be positive")
    if arguments.out.suffix != ".json":
        raise ValueError(f"--out={arguments.out} must be the name of a file that ends in .json")


def plan(name: str, config: Config, arguments: Arguments, topology: Topology | None) -> "ScalingGrid":
    """Plan the grid, write its file and print it. jax is imported here."""
    if arguments.compile:
        if "jax" in sys.modules:
            raise ValueError("jax was imported before the environment of libtpu was set; run this in its own process")
        from lumina_jax.libtpu import add_libtpu

        add_libtpu()
    import jax

    from lumina_jax.scaling.grid import ScalingGrid, write_whole
    from lumina_jax.scaling.plan import PlanRules, notes, planned_cells
    from lumina_jax.scaling.plan_table import plan_lines
    from lumina_jax.scaling.recipes import parse_recipe, read_recipes, recipe_configs
    from lumina_jax.scaling.sizes import parse_size

    flags = {} if arguments.recipes is None else read_recipes(arguments.recipes)
    for recipe, words in map(parse_recipe, arguments.recipe):
        if recipe in flags:
            raise ValueError(f"the recipe {recipe!r} is named twice; give each its own name")
        flags[recipe] = words
    recipes = recipe_configs(config, flags or {Path(name).stem: ""})
    sizes = [parse_size(word, config.model) for word in listed(arguments.sizes)]
    rules = PlanRules(
        batch_power=arguments.batch_power,
        width_power=arguments.width_power,
        batch_rate_power=arguments.batch_rate_power,
        least_steps=arguments.least_steps,
    )
    machine, cost = machine_and_cost(arguments, config, topology)
    budgets, seeds = numbers("--budgets", arguments.budgets), whole_numbers("--seeds", arguments.seeds)
    cells, short = planned_cells(recipes, sizes, budgets, seeds, rules, cost)
    grid = ScalingGrid(
        source=name,
        machine=machine,
        rules=dataclasses.asdict(rules),
        curve=arguments.curve,
        cores=arguments.cores,
        recipes=recipes,
        cells=tuple(cells),
    )
    devices = jax.device_count() if topology is None and arguments.device == HERE else 1
    for line in plan_lines(grid, devices if topology is None else topology.devices, arguments.price):
        print(line)
    for line in notes(cells, recipes):
        print(f"note: {line}")
    if short:
        print(f"left out, with fewer than {rules.least_steps} steps: {', '.join(short)}")
    write_whole(arguments.out, grid.to_json())
    print(f"{arguments.out} holds the grid; train it with: lumina scaling run {arguments.out}")
    return grid


def machine_and_cost(arguments: Arguments, config: Config, topology: Topology | None) -> "tuple[Machine, Coster]":
    """The machine that the arguments name, and what runs cost there."""
    from lumina_jax.scaling import machine as costs

    if topology is not None:
        pod = costs.pod_of(topology, arguments.utilisation)
        return pod, costs.on_pod(topology, pod, arguments.compiles if arguments.compile else 0, say)
    here = costs.machine_of(arguments.device, arguments.utilisation, config.model.compute_dtype)
    return here, costs.measured(say) if arguments.measure else costs.assumed(here)


def listed(text: str) -> list[str]:
    """The words between the commas."""
    return [word.strip() for word in text.split(",") if word.strip()]


def numbers(flag: str, text: str) -> list[float]:
    """The numbers between the commas.

    Raises:
      ValueError: a word is no number.
    """
    try:
        return [float(word) for word in listed(text)]
    except ValueError:
        raise ValueError(
            f"{flag} must be numbers with commas between them, such as 1e13,3e13, but is {text!r}"
        ) from None


def whole_numbers(flag: str, text: str) -> list[int]:
    """The whole numbers between the commas.

    Raises:
      ValueError: a word is no whole number from 0 to 2**64 - 1.
    """
    words = listed(text)
    if not all(word.isascii() and word.isdigit() and int(word) < 2**64 for word in words):
        raise ValueError(f"{flag} must be whole numbers with commas between them, such as 0,1,2, but is {text!r}")
    return [int(word) for word in words]


def say(line: str) -> None:
    print(line, flush=True)
