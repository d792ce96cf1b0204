"""Which mesh, remat policy and number of micro-batches suit a model on a topology.

In: a plan. Out: the report of the best plan that fits. Every candidate is first judged by arithmetic alone. The best
few, of every remat policy at least one, are compiled, and that of the least expected time wins. So a recommendation
rests on real programs, and only the choice of those few on the estimates of this file, which are simple on purpose:

* memory: 16 bytes a parameter (value, average, two moments) and 4 of its gradient over the devices that share it, or of
  adapters on every device, and the base in its type over those that share it; two layers gathered in bfloat16, what
  each layer keeps for the backward pass, and the activations of one layer;
* arithmetic: model FLOPs, and again the share of the forward pass that is computed twice, attention at the share of a
  matrix unit that a head fills;
* links: each micro-batch gathers all weights twice and scatters their gradients once, in bfloat16; gradients are summed
  over `data` once; where a sequence is shared, q, k, v and the output are exchanged, or keys and values go round the
  ring; where products are shared, each layer sums two results. Each pass (forward, again, backward) does so;
* what each layer keeps is written to memory and read again.

These times are added up. Some of it overlaps, but to count on that would make a second micro-batch, which gathers all
weights again, seem to cost nothing; in compiled programs it takes about as long as its links work (docs/scaling.md).
Where SparseCores gather and scatter, a share of that is waited for.
"""

import dataclasses
import functools
import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax

from lumina_jax.aot.flops import Load, forward_flops, step_flops
from lumina_jax.aot.plan import DoesNotFitError, Plan, Report, compile_plan, devices_of, plan_mesh
from lumina_jax.aot.roofline import attention_efficiency
from lumina_jax.chips import Topology
from lumina_jax.config import Config, ModelConfig
from lumina_jax.parallel.compiler_options import WITH_SPARSE_CORES
from lumina_jax.training.state import initial_shapes, parameter_count

MEMORY_SHARE = 0.92
"""The share of the memory that a candidate may fill by estimate, because the estimate leaves out temporaries."""
WAITED_SHARE = 0.2
"""The share of the links' work on weights that a step waits for where SparseCores do it: 0.03 of 0.15 s for 5B on 256
v6e."""
MICRO_BATCHES, DATA, TENSOR = (1, 2, 4, 8), (1, 2, 4, 8), (1, 2, 4)


class Guess(NamedTuple):
    """A candidate judged by arithmetic: seconds of a step, and bytes of a device."""

    plan: Plan
    seconds: float
    memory: float


class Shares(NamedTuple):
    """How a candidate divides the devices."""

    data: int
    fsdp: int
    sequence: int
    ring: int
    tensor: int

    @property
    def parameters(self) -> int:
        """Devices that share each parameter and its moments."""
        return self.fsdp * self.sequence * self.tensor


class Held(NamedTuple):
    """What devices keep of the parameters of a model."""

    parameters: int
    """The number of all of them."""
    trained: int
    """The number of values that train: those of all parameters, or of adapters and others beside a base."""
    base: float
    """Bytes of the base; 0 where all parameters train."""


def search(plan: Plan, compiles: int, say: Callable[[str], None]) -> Report:
    """The report of the candidate of the least expected time among the best that fit; where the plan is quick, whose
    times say nothing, of the first that fits.

    Args:
      compiles: the most candidates to compile.

    Raises:
      ValueError: no candidate can work on this topology.
      DoesNotFitError, JaxRuntimeError: none of those compiled fits, or what the compiler said of the last.
    """
    found = sorted(guesses(plan), key=rank)
    if not found:
        raise ValueError(
            f"no mesh of the {plan.topology.devices} devices of {plan.topology.name} suits {plan.load.rows} rows of "
            f"{plan.load.tokens} tokens; make --rows a multiple of many devices, or choose another topology"
        )
    fitting = fitting_by_guess(plan, found)
    say(f"{len(found)} candidates, of which {len(fitting)} fit by estimate; the best of each remat policy, and others:")
    chosen = shortlist(fitting or sorted(found, key=lambda guess: guess.memory), compiles)
    for guess in chosen:
        say(f"  {guess.seconds:8.4g} s  {guess.memory / 1e9:6.1f} GB  {flags(guess.plan.config)}")
    failure: Exception = DoesNotFitError(f"none of the best {compiles} candidates fits", None)
    reports = []
    for guess in chosen:
        try:
            report = compile_plan(guess.plan)
        except (ValueError, RuntimeError) as error:
            failure = error
            verb = "fit" if isinstance(error, DoesNotFitError) else "compile"
            say(f"does not {verb}: {flags(guess.plan.config)}")
            continue
        reports.append(report)
        if plan.quick:
            break
        say(f"expected {report.estimate.expected:.4g} s: {flags(guess.plan.config)}")
    if not reports:
        raise failure
    best = reports[0] if plan.quick else min(reports, key=lambda report: report.estimate.expected)
    say(f"recommended: {flags(best.plan.config)}")
    return best


def fitting_by_guess(plan: Plan, found: Sequence[Guess]) -> list[Guess]:
    """Those whose memory leaves room for what the estimate leaves out."""
    limit = MEMORY_SHARE * plan.topology.chip.hbm_usable
    return [guess for guess in found if guess.memory <= limit]


def shortlist(ranked: Sequence[Guess], most: int) -> list[Guess]:
    """The best of each remat policy, then the best of the others, at most `most`, in their order."""
    first: dict[str, Guess] = {}
    for guess in ranked:
        first.setdefault(guess.plan.config.model.remat, guess)
    chosen = [*first.values(), *(guess for guess in ranked if guess is not first[guess.plan.config.model.remat])]
    return sorted(chosen[:most], key=rank)


def suggested_mesh(plan: Plan, devices: Sequence[Any]) -> str | None:
    """The flags of the best mesh for a plan whose mesh was refused, all else being equal."""

    def unchanged(config: Config) -> tuple[str, int, int]:
        return config.model.remat, config.optimizer.accumulate, config.mesh.tensor

    every = list(guesses(plan, devices))
    alike = [guess for guess in every if unchanged(guess.plan.config) == unchanged(plan.config)]
    best = min(fitting_by_guess(plan, alike) or alike, key=rank, default=None)
    return None if best is None else flags(best.plan.config, only_mesh=True)


def rank(guess: Guess) -> tuple[float, float]:
    """Fast ones first; of those that differ by less than a hundredth, the one that needs least memory."""
    return round(math.log(guess.seconds), 2), guess.memory


def flags(config: Config, *, only_mesh: bool = False) -> str:
    """The flags that select a candidate, or its mesh."""
    mesh = " ".join(f"--mesh.{name} {size}" for name, size in dataclasses.asdict(config.mesh).items())
    others = f" --model.remat {config.model.remat} --optimizer.accumulate {config.optimizer.accumulate}"
    return mesh if only_mesh else mesh + others


@dataclasses.dataclass(frozen=True)
class DescribedDevice:
    """What the mesh needs to know of a device of a topology, where there is no compiler to ask."""

    id: int
    coords: tuple[int, ...]
    core_on_chip: int
    slice_index: int = 0
    process_index: int = 0


def described_devices(topology: Topology) -> list[DescribedDevice]:
    """The devices of a topology by their coordinates; libtpu is not needed."""
    extent = topology.extent + (1,) * (3 - len(topology.extent))
    positions = itertools.product(*map(range, extent), range(topology.chip.devices))
    return [DescribedDevice(index, tuple(coords), core) for index, (*coords, core) in enumerate(positions)]


def guesses(plan: Plan, devices: Sequence[Any] | None = None) -> Iterator[Guess]:
    """Every candidate that mesh and model allow, judged.

    Args:
      devices: of the topology; None: those that libtpu knows.
    """
    devices = devices_of(plan.topology) if devices is None else devices
    count, load, held = len(devices), plan.load, held_parameters(plan.config)
    for shares in divisions(count, plan.config.model.heads):
        if load.tokens % shares.sequence:
            continue
        for remat, micro in itertools.product(KEPT_VALUES, MICRO_BATCHES):
            if load.rows % (micro * shares.data * shares.fsdp):
                continue
            config = plan.config.replace(
                mesh={name: getattr(shares, name) for name in ("fsdp", "sequence", "ring", "tensor")},
                model={"remat": remat},
                optimizer={"accumulate": micro},
            )
            candidate = dataclasses.replace(plan, config=config)
            try:
                plan_mesh(candidate, devices)
            except ValueError:
                continue
            yield judged(candidate, shares, load, held)


def divisions(devices: int, heads: int) -> Iterator[Shares]:
    """Every division of the devices with small `data` and `tensor`, the rest fsdp and sequence. A ring is tried only
    where there are too few heads, because exchanging heads is never slower."""
    for data, tensor in itertools.product(DATA, TENSOR):
        if devices % (data * tensor):
            continue
        rest = devices // (data * tensor)
        for sequence in (size for size in range(1, rest + 1) if rest % size == 0):
            ring = sequence // math.gcd(sequence, heads // tensor)
            yield Shares(data, rest // sequence, sequence, ring, tensor)


@functools.lru_cache(maxsize=16)
def held_parameters(config: Config) -> Held:
    """What devices keep of the parameters of a run."""
    count = parameter_count(config.model)
    if not config.finetune.is_partial:
        return Held(count, count, 0.0)
    state = initial_shapes(config)
    assert state.base is not None
    base = sum(float(leaf.size * leaf.dtype.itemsize) for leaf in jax.tree.leaves(state.base.parameters))
    return Held(count, sum(leaf.size for leaf in jax.tree.leaves(state.parameters)), base)


def judged(plan: Plan, shares: Shares, load: Load, held: Held) -> Guess:
    """Seconds and bytes by the rules of this file."""
    model, micro = plan.config.model, plan.config.optimizer.accumulate
    rows = load.rows / (micro * shares.data * shares.fsdp)
    tokens = rows * load.tokens / shares.sequence  # of one device in one micro-batch
    kept_again = micro * 2 * _kept_bytes(model, tokens) / plan.topology.chip.hbm_bandwidth
    of_weights, of_activations = _link_seconds(plan, shares, tokens, held.parameters)
    computed = _arithmetic(plan, load) + kept_again
    waited_for = WAITED_SHARE if plan.topology.chip.name in WITH_SPARSE_CORES else 1.0
    seconds = max(computed + waited_for * of_weights, of_weights) + of_activations
    return Guess(plan, seconds, device_bytes(model, shares, tokens, held, micro))


def device_bytes(model: ModelConfig, shares: Shares, tokens: float, held: Held, micro: int) -> float:
    """Bytes of a device that has this number of tokens of each micro-batch."""
    width = _value_bytes(model)
    trained = 4.0 * held.trained * (6 if micro > 1 else 5)
    state = trained + held.base / shares.parameters if held.base else trained / shares.parameters
    layer = 2 * 2 * width * held.parameters / model.layers / shares.tensor
    widest = width * tokens * (12 * model.width + 4 * model.mlp_width / shares.tensor)
    return state + _kept_bytes(model, tokens) + layer + widest


KEPT_VALUES: dict[str, Callable[[ModelConfig], int]] = {
    "full": lambda model: model.width,
    "attention": lambda model: model.width + model.heads_width + 2 * model.heads,
    "feed_forward": lambda model: 2 * model.width + model.heads_width + 2 * model.heads,
    "dots": lambda model: (
        3 * model.width + 3 * model.heads_width + 2 * model.heads + 2 * _keys(model) + 2 * model.mlp_width
    ),
    "none": lambda model: 12 * model.width + 4 * model.heads_width + 4 * _keys(model) + 4 * model.mlp_width,
}
"""Values a token that each layer keeps, under each policy. "offload" must be chosen by hand, because the bandwidth to
the memory of the host is not published."""


def _keys(model: ModelConfig) -> int:
    return model.key_heads * model.head_width


def _kept_bytes(model: ModelConfig, tokens: float) -> float:
    """Bytes that all layers keep of these tokens; "offload" keeps them in the memory of the host."""
    values = KEPT_VALUES[model.remat](model) if model.remat in KEPT_VALUES else 0
    return _value_bytes(model) * tokens * values * model.layers


def _value_bytes(model: ModelConfig) -> float:
    return 4.0 if model.compute_dtype == "float32" else 2.0


def _arithmetic(plan: Plan, load: Load) -> float:
    """Seconds of all products, recomputation included."""
    model = plan.config.model
    forward, step = forward_flops(model, load), step_flops(model, load, frozen=plan.config.finetune.is_partial)
    again = forward.total - forward.attention
    last = 2.0 * load.rows * load.tokens * model.layers * model.width * model.mlp_width
    products, attention = {
        "full": (again, forward.attention),
        "attention": (again, 0.0),
        "feed_forward": (again - last, 0.0),
        "dots": (0.0, 0.0),
        "none": (0.0, 0.0),
    }[model.remat]
    attention += step.attention + forward.attention / 2  # a kernel's backward pass makes the logits again
    attention /= attention_efficiency(model.head_width, plan.topology)
    return (step.total - step.attention + products + attention) / plan.topology.devices / plan.topology.chip.flops


def _link_seconds(plan: Plan, shares: Shares, tokens: float, parameters: int) -> tuple[float, float]:
    """Seconds of collectives of weights and gradients, and of activations, over two links of each device, or over one
    where no axis closes to a ring."""
    model, micro = plan.config.model, plan.config.optimizer.accumulate
    wraps = any(plan.topology.wraps(axis) for axis in range(len(plan.topology.extent)))
    rate = (2 if wraps else 1) * plan.topology.chip.link_bandwidth
    over = shares.fsdp * shares.sequence
    weights = micro * 6.0 * parameters / shares.tensor * (over - 1) / over
    summed = 2 * 4.0 * parameters / shares.parameters * (shares.data - 1) / shares.data
    passes = micro * model.layers * (2 if model.remat == "none" else 3)
    exchanged = shares.sequence // shares.ring
    values = 2.0 * tokens / shares.tensor * (2 * model.heads_width + 2 * _keys(model))
    exchange = passes * values * exchanged / 4 if exchanged > 1 else 0.0
    ring = passes * 2.0 * tokens / shares.tensor * 2 * _keys(model) * 1.5 * (shares.ring - 1)
    sums = passes * 2 * 2 * 2.0 * tokens * model.width * (shares.tensor - 1) / shares.tensor
    return (weights + summed) / rate, (ring + exchange + sums) / rate
