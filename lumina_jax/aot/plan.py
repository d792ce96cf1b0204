"""The real train step, or the sampler, compiled for TPU chips that are not attached.

In: a configuration, a topology, and the contents of a batch. Out: a `Report`: whether the program fits, what it does,
and the least time that it takes. The program that is compiled is that of `training/step.py` (or
`generation/sampler.py`) to the last instruction; only its arrays are abstract. Needs libtpu (`make aot-setup`), no TPU.

`Topology.environment` must be set before jax is imported; `commands/aot.py` does.
"""

import contextlib
import dataclasses
import functools
import re
import time
from collections.abc import Iterator, Sequence
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
from jax.experimental import topologies
from jax.experimental.pallas import tpu as pltpu
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from lumina_jax.aot.flops import Load, sampling_flops, step_flops
from lumina_jax.aot.hlo import read_hlo
from lumina_jax.aot.memory import Memory, memory
from lumina_jax.aot.roofline import StepEstimate, attention_efficiency, estimate_step
from lumina_jax.aot.timeline import CompileTarget, StepTimeline, timeline
from lumina_jax.aot.traffic import Collective, Work, collectives, work
from lumina_jax.chips import Topology
from lumina_jax.config import Config, MeshConfig
from lumina_jax.data.batches import row_tokens
from lumina_jax.flow.ancestral import ANCESTRAL
from lumina_jax.flow.dpm_solver import DPM_SOLVERS
from lumina_jax.flow.sde import STOCHASTIC
from lumina_jax.flow.solvers import SOLVERS
from lumina_jax.generation.extrapolation import Extent
from lumina_jax.generation.guided import Prompt, Task
from lumina_jax.generation.sampler import draw
from lumina_jax.kernels.edges import kernel_edges
from lumina_jax.libtpu import add_libtpu, device_of_kernels
from lumina_jax.modalities import modality_of_source
from lumina_jax.models.adapters import adapted_shardings
from lumina_jax.models.division import division, parameter_shardings
from lumina_jax.models.flag_dit import abstract_model
from lumina_jax.models.precision import abstract_parameters
from lumina_jax.parallel.compiler_options import compiler_options
from lumina_jax.parallel.mesh import batch_sharding, check_mesh, check_tokens, configured_mesh
from lumina_jax.tokens import TextFeatures, Tokens, latent_grid
from lumina_jax.training.state import abstract_state, parameter_count
from lumina_jax.training.step import TrainBatch, batch_shardings, train_step

QUICK, QUICK_FROM_0_12 = ("jax_exec_time_optimization_effort", -1.0), ("jax_optimization_level", "O1")
"""The setting of jax for a quick compile, whose memory and collectives are right and whose speed is too low."""


class DoesNotFitError(ValueError):
    """The compiler found that the program needs more memory than a device has."""

    def __init__(self, message: str, needed: float | None):
        super().__init__(message)
        self.needed = needed
        """Bytes; None where the compiler did not say."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plan:
    """The program to compile, and the topology."""

    config: Config
    topology: Topology
    sampler: bool = False
    quick: bool = False
    vae_factor: int = 8
    """Pixels along one side of a value of the latent, where `config.vae` names an autoencoder."""

    @property
    def extent(self) -> Extent:
        """The extent of the latents of a sample that is drawn."""
        return trained_extent(self.config, self.vae_factor)

    @property
    def mesh(self) -> MeshConfig:
        """The sizes of the mesh over the devices of the topology."""
        return self.config.mesh.over(self.topology.devices)

    @property
    def load(self) -> Load:
        """The batch of `config`; for a sampler, one sample in each row."""
        return (drawn_load if self.sampler else batch_load)(self.config, self.vae_factor)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Report:
    """The findings about a plan."""

    plan: Plan
    load: Load
    memory: Memory
    collectives: tuple[Collective, ...]
    work: Work
    model_flops: float
    """Model FLOPs of a step on all devices, or of one sampling."""
    estimate: StepEstimate
    timeline: StepTimeline
    parameters: int
    """The number of the model's parameters."""
    compile_seconds: float
    program: str
    """The text of the compiled program."""

    @property
    def fits(self) -> bool:
        return self.memory.total <= self.plan.topology.chip.hbm_usable


def batch_load(config: Config, vae_factor: int = 8) -> Load:
    """The contents of a training batch, captions padded to text.max_tokens.

    Args:
      vae_factor: pixels along one side of a value of the latent, where `config.vae` names an autoencoder.
    """
    data, model = config.data, config.model
    modalities = [
        modality_of_source(part, model, config.vae_of(part.modality), factor=vae_factor) for part in data.parts
    ]
    text = config.text.max_tokens if model.conditioning == "text" else 0
    tokens = row_tokens(data, model, modalities)
    return Load(rows=data.batch_rows, tokens=tokens, samples=data.samples_per_row, text_tokens=text)


def trained_extent(config: Config, vae_factor: int = 8) -> Extent:
    """The extent of the latents of a sample of the size of training."""
    data, vae = config.data_of(None), config.vae_of(None)
    modality = modality_of_source(data, config.model, vae, factor=vae_factor)
    return Extent(*modality.latent_size(modality.trained_shape)[:3])


def drawn_load(config: Config, vae_factor: int = 8) -> Load:
    """The contents of a batch that is drawn, one sample of the size of training in each row."""
    model = config.model
    markers = {"nextline": model.nextline, "nextframe": model.nextframe}
    grid = latent_grid(*trained_extent(config, vae_factor), patch_size=model.patch_size, **markers)
    return dataclasses.replace(batch_load(config, vae_factor), tokens=grid.length, samples=1)


def devices_of(topology: Topology) -> list[jax.Device]:
    """The devices of the topology, in the compiler's order.

    Raises:
      ValueError: libtpu is missing, or knows no such topology.
    """
    add_libtpu()
    try:
        found = topologies.get_topology_desc(platform="tpu", topology_name=topology.name, **_host(topology))
    except Exception as error:  # libtpu has no narrower one
        reason = str(error).splitlines()[0]
        raise ValueError(
            f"libtpu cannot make the topology {topology.name!r} ({reason}); choose one that Cloud TPU sells, such as "
            "v5e:16x16 or v5p:4x4x4"
        ) from error
    return list(found.devices)


def _host(topology: Topology) -> dict[str, Any]:
    """What libtpu must know of the hosts of a topology: whether a host has one chip. It assumes 2x2."""
    return {"chips_per_host_bounds": (1, 1, 1)} if topology.chips == 1 and topology.chip.sold_alone else {}


def plan_mesh(plan: Plan, devices: Sequence[Any]) -> Mesh:
    """The mesh of a plan, checked against model and batch before anything is compiled.

    Raises:
      ValueError: mesh, batch and topology do not fit together.
    """
    mesh = configured_mesh(plan.mesh, devices)
    check_mesh(plan.config, mesh)
    if not plan.sampler:  # which fills rows up
        check_tokens(plan.load.tokens, mesh)
    return mesh


def compile_plan(plan: Plan) -> Report:
    """Compile the program of a plan and read it.

    Raises:
      ValueError: the plan cannot work.
      DoesNotFitError: it can, with more memory.
    """
    mesh = plan_mesh(plan, devices_of(plan.topology))
    start = time.perf_counter()
    with answering_for(mesh.devices.flatten().tolist()):
        traced, trees = _trace_sampler(plan, mesh) if plan.sampler else _trace_step(plan, mesh)
        lowered = traced.lower(lowering_platforms=("tpu",))
    compiled = _compile(lowered, plan.quick)
    seconds = time.perf_counter() - start
    text = compiled.as_text()
    module, head_width = read_hlo(text), plan.config.model.head_width
    target = CompileTarget(
        topology=plan.topology,
        coordinates=[tuple(device.coords[: len(plan.topology.extent)]) for device in mesh.devices.flatten()],
        attention_efficiency=attention_efficiency(head_width, plan.topology),
        samples=plan.load.samples,
        edges=kernel_edges(traced.jaxpr.jaxpr),
    )
    trips = (plan.config.sample.steps, _calls(plan.config.sample.solver)) if plan.sampler else ()
    done, sent = work(module, trips, target.samples), tuple(collectives(module, trips))
    course, model_flops = timeline(module, target, trips), _model_flops(plan)
    return Report(
        plan=plan,
        load=plan.load,
        memory=memory(compiled.memory_analysis(), module, 0 if plan.sampler else plan.config.model.layers, **trees),
        collectives=sent,
        work=done,
        model_flops=model_flops,
        estimate=estimate_step(
            done, sent, target.coordinates, plan.topology,
            in_order=course.seconds, model_flops=model_flops, head_width=head_width,
        ),
        timeline=course,
        parameters=parameter_count(plan.config.model),
        compile_seconds=seconds,
        program=text,
    )  # fmt: skip


@contextlib.contextmanager
def answering_for(devices: Sequence[Any]) -> Iterator[None]:
    """Where a program of one device is traced, which has no mesh in context: kernels that ask for the device of this
    process hear of that of the topology."""
    if len(devices) > 1:
        yield
        return
    (device,) = devices
    answers = ((jax, "default_backend", "tpu"), (jax, "device_count", 1))
    with contextlib.ExitStack() as replaced:
        for module, name, answer in answers:
            replaced.enter_context(mock.patch.object(module, name, lambda answer=answer: answer))
        replaced.enter_context(mock.patch.dict(*device_of_kernels(device)))
        pltpu.get_tpu_info.cache_clear()  # type: ignore[attr-defined]
        replaced.callback(pltpu.get_tpu_info.cache_clear)  # type: ignore[attr-defined]
        yield


def abstract_batch(config: Config, load: Load, mesh: Mesh) -> TrainBatch:
    """A batch as `training/feed.py` divides it over the mesh, without values."""
    shardings, model = batch_shardings(mesh), config.model

    def array(*shape: int, dtype: Any = jnp.float32) -> Any:
        return jax.ShapeDtypeStruct((load.rows, *shape), dtype)

    tokens = Tokens(
        array(load.tokens, model.patch_values),
        array(load.tokens, dtype=jnp.int32),
        array(load.tokens, 4, dtype=jnp.int32),
        array(load.tokens, dtype=jnp.int32),
        array(load.tokens, dtype=jnp.int32) if model.others else None,
    )
    words = load.samples * load.text_tokens
    text = TextFeatures(array(words, model.text_width), array(words, dtype=jnp.int32))
    labels = array(load.samples, dtype=jnp.int32)
    batch = TrainBatch(tokens, labels if model.conditioning == "label" else text, array(load.samples))
    changes = (functools.partial(_with_sharding, sharding) for sharding in shardings)
    return TrainBatch(*(jax.tree.map(change, part) for change, part in zip(changes, batch)))


def _with_sharding(sharding: Any, leaf: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)


def _trace_step(plan: Plan, mesh: Mesh) -> tuple[Any, dict[str, Any]]:
    """The train step, traced, and its arrays by their kind of `Memory`."""
    state = abstract_state(plan.config, mesh)
    batch = abstract_batch(plan.config, plan.load, mesh)
    step: Any = train_step(plan.config, mesh)
    trees = {"parameters": state.parameters, "average": state.ema, "moments": state.optimizer, "base": state.base}
    return step.trace(state, batch), trees


def _trace_sampler(plan: Plan, mesh: Mesh) -> tuple[Any, dict[str, Any]]:
    """One drawing of `data.batch_rows` samples, traced, and its parameters in the types of `sample.weights`."""
    config, load = plan.config, plan.load
    shardings = parameter_shardings(config.model, mesh)
    parameters = abstract_parameters(config.model, config.sample.weights, shardings)
    batch = abstract_batch(config, load, mesh)
    number: Any = jax.ShapeDtypeStruct((), jnp.float32, sharding=NamedSharding(mesh, PartitionSpec()))
    rows = batch_sharding(mesh)
    noise = jax.ShapeDtypeStruct((load.rows, *plan.extent, config.model.channels), jnp.float32, sharding=rows)
    keys = _with_sharding(rows, jax.eval_shape(lambda: jax.random.split(jax.random.key(0), load.rows)))
    negative = () if config.sample.negative_scale is None else (batch.condition, number)
    prompt = Prompt(batch.condition, batch.condition, number, number, *negative)
    divided = division(config, mesh, adapted_shardings(shardings, parameters))
    task = Task(abstract_model(config.model)[0], config, plan.extent, division=divided)
    options = compiler_options(mesh.devices.flat[0].device_kind, trains=False)
    program = jax.jit(functools.partial(draw, task, config.sample), compiler_options=options)
    return program.trace(parameters, noise, keys, prompt), {"parameters": parameters}


def _compile(lowered: Any, quick: bool) -> Any:
    """Compile, and distinguish a lack of memory from other errors."""
    name, least = QUICK if hasattr(jax.config, QUICK[0]) else QUICK_FROM_0_12
    usual = getattr(jax.config, name)
    jax.config.update(name, least if quick else usual)
    try:
        return lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        is_of_memory, is_of_core = (word in str(error) for word in ("RESOURCE_EXHAUSTED", "memory space vmem"))
        if is_of_core and quick:
            raise ValueError(
                "with --quick, the compiler needs more of a core's own memory (VMEM) than it has, which says nothing "
                "of HBM; leave out --quick"
            ) from error
        if is_of_core or not (is_of_memory or "Ran out of memory" in str(error)):
            raise
        raise DoesNotFitError(str(error), needed_bytes(str(error))) from error
    finally:
        jax.config.update(name, usual)


def needed_bytes(message: str) -> float | None:
    """The memory that the compiler says a program needs, from the text of its error."""
    units = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
    for pattern in (
        r"Used ([\d.]+)([KMGT]?) of [\d.]+[KMGT]? hbm",
        r"required for HLO temporaries \(([\d.]+)([KMGT]?)\)",
    ):
        found = re.search(pattern, message)
        if found:
            return float(found[1]) * units[found[2]]
    return None


def _model_flops(plan: Plan) -> float:
    config = plan.config
    if plan.sampler:
        return drawing_flops(config, plan.load)
    return step_flops(config.model, plan.load, frozen=config.finetune.is_partial).total


def drawing_flops(config: Config, load: Load) -> float:
    """Model FLOPs of drawing the batch with the settings of `sample`."""
    sample, captions = config.sample, 2 if config.sample.negative_scale is None else 3
    return sampling_flops(config.model, load, _calls(sample.solver) * sample.steps, captions)


def _calls(solver: str) -> int:
    """Predictions of the network in a step of the solver."""
    return SOLVERS[solver].calls if solver in SOLVERS else (STOCHASTIC | ANCESTRAL | DPM_SOLVERS)[solver]
