"""The coordinate check: do activations, and their changes in the first steps, keep their size as the width grows?

In: a configuration and a batch. Out: for each kind of layer the root mean square of its output and of the change of
that output since step 0, at several widths, and the slope of their logarithms over that of the width. With muP all
slopes are near 0; without it some are not (Tensor Programs V, arXiv 2203.03466, appendix D.1).

Every step at every width has the same batch, noise and times. A parameter behind a gate that starts at zero gets a
gradient only through what the gate learned in earlier steps, so if batches differ, the sign of its update is that of
the agreement of two batches. Where that is near zero, the few values of a narrow model decide it, and AdamW, whose step
does not shrink with the gradient, makes a full step of it; the embedding of time then grows at one width and not at
another. `EPS` has the same reason: behind two gates gradients are less than the usual eps, and a step that is not yet
as large as the rate depends on their size.
"""

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from flax import nnx
from jax.sharding import Mesh
from jaxtyping import Array, Float

from lumina_jax.config import Config, FlowConfig, ModelConfig
from lumina_jax.models.attention import attend_with
from lumina_jax.models.flag_dit import FlagDiT, Parallel
from lumina_jax.models.layers import ParameterKeys
from lumina_jax.training.state import Parameters, create_state
from lumina_jax.training.step import NoiseAndTimes, TrainBatch, batch_losses, noise_and_times, train_step

LOGITS = "blocks.attention.logits"
EPS = 1e-16
"""`optimizer.eps` in the check: less than gradients, and more than those whose squares float32 rounds to zero."""
NEGLIGIBLE = 1e-6
"""OutputSizes below it are rounding, or outputs that are still zero."""


class OutputSizes(NamedTuple):
    """The root mean square of the output of a kind of layer, and of its change since step 0."""

    output: float
    change: float


class OutputSlopes(NamedTuple):
    """The exponents of the width by which output and change grow; None: they are zero."""

    output: float | None
    change: float | None

    def is_flat(self, tolerance: float) -> bool:
        return all(slope is None or abs(slope) <= tolerance for slope in self)


@dataclasses.dataclass(frozen=True)
class CoordinateCheck:
    """The sizes of each kind of layer at each width, and their slopes."""

    widths: tuple[int, ...]
    sizes: dict[str, tuple[OutputSizes, ...]]
    """By the name of the layer in the model, all blocks together."""

    @property
    def slopes(self) -> dict[str, OutputSlopes]:
        """By the name of the layer."""
        return {
            name: OutputSlopes(
                _slope(self.widths, [at.output for at in found]), _slope(self.widths, [at.change for at in found])
            )
            for name, found in self.sizes.items()
        }

    def not_flat(self, tolerance: float) -> list[str]:
        """The layers of which a slope is steeper than the tolerance."""
        return [name for name, slopes in self.slopes.items() if not slopes.is_flat(tolerance)]


def widened(model: ModelConfig, factor: int, *, fixed_heads: bool = False) -> ModelConfig:
    """A model of `factor` times the width.

    Args:
      fixed_heads: heads grow in width; otherwise in number.

    Raises:
      ValueError: the model cannot have this width.
    """
    sizes: dict[str, Any] = {"width": factor * model.width}
    grown = ["attention_width"] if fixed_heads else ["attention_width", "heads", "kv_heads", "text_heads"]
    for name in grown:
        value = getattr(model, name)
        sizes[name] = value and factor * value
    if fixed_heads and model.parametrization == "mup" and model.base_heads is None:
        sizes["base_heads"] = model.heads
    return dataclasses.replace(model, **sizes)


def coordinate_check(
    config: Config,
    batch: TrainBatch,
    mesh: Mesh,
    *,
    steps: int,
    factors: Sequence[int],
    fixed_heads: bool = False,
    say: Callable[[str], None] = lambda line: None,
) -> CoordinateCheck:
    """Train a model of each width on the batch, and measure its outputs for it before and after.

    Args:
      steps: of training.
      factors: by which the width of the configuration is multiplied.
      fixed_heads: see `widened`.
      say: is told what begins.
    """
    found: list[dict[str, OutputSizes]] = []
    models = [widened(config.model, factor, fixed_heads=fixed_heads) for factor in factors]
    for model in models:
        say(f"training {steps} steps at width {model.width}")
        found.append(sizes_after(steps, config.replace(model=model), batch, mesh))
    sizes = {name: tuple(one[name] for one in found) for name in found[0]}
    return CoordinateCheck(tuple(model.width for model in models), sizes)


def sizes_after(steps: int, config: Config, batch: TrainBatch, mesh: Mesh) -> dict[str, OutputSizes]:
    """The sizes of the outputs of each layer for the batch, after so many steps on it with the draws of step 0."""
    config = config.replace(optimizer={"eps": EPS})
    state = create_state(config, mesh)
    initial = jax.tree.map(jnp.copy, state.parameters)
    drawn = noise_and_times(jax.random.fold_in(state.key, 0), batch, config.flow)
    step = train_step(config, mesh)
    for _ in range(steps):
        state, _ = step(state, batch)
        state = state._replace(step=jnp.zeros_like(state.step))  # noise and times follow from it, the rate does not
    graph, recorder = _recording_graph(config.model)

    @jax.jit
    def measured(initial: Parameters, parameters: Parameters) -> dict[str, tuple[Array, Array]]:
        before = recorder.outputs(graph, initial, batch, drawn, config.flow)
        after = recorder.outputs(graph, parameters, batch, drawn, config.flow)
        return {
            name: (_rms(after[name]), _rms([now - then for now, then in zip(after[name], before[name])]))
            for name in after
        }

    found = jax.device_get(measured(initial, state.parameters))
    return {name: OutputSizes(float(output), float(change)) for name, (output, change) in found.items()}


class Recorder:
    """Records the outputs of modules while a model is traced, by the name in their attribute `recorded_as`."""

    def __init__(self) -> None:
        self.found: dict[str, list[Array]] = {}

    def record(self, name: str, output: Any) -> None:
        arrays = [jnp.asarray(leaf, jnp.float32) for leaf in jax.tree.leaves(output)]
        self.found.setdefault(name, []).extend(arrays)

    def outputs(
        self, graph: nnx.GraphDef, parameters: Parameters, batch: TrainBatch, drawn: NoiseAndTimes, flow: FlowConfig
    ) -> dict[str, list[Array]]:
        """The outputs of each module of the model; of blocks, those of all layers."""
        self.found = {}
        model = nnx.merge(graph, parameters)
        with self._listening(model):
            batch_losses(model, batch, drawn, flow)
        return self.found

    def attend(self, attend: Callable[..., Array]) -> Callable[..., Array]:
        """Attention that records the logits between all tokens."""

        def recorded(q: Float[Array, "b l h d"], k: Float[Array, "b l k d"], *rest: Any, **options: Any) -> Array:
            queries = rearrange(q, "b l (k g) d -> b l k g d", k=k.shape[2])
            self.record(LOGITS, options["scale"] * jnp.einsum("blkgd,bmkd->bkglm", queries, k))
            return attend(q, k, *rest, **options)

        return recorded

    @contextlib.contextmanager
    def _listening(self, model: FlagDiT) -> Iterator[None]:
        """Until it ends, each call of a module is recorded. Modules of one class share their method, which is replaced
        in the class: layers are taken out of their stack, as new modules, only when the model is called."""
        kinds = {type(module) for _, module in nnx.iter_modules(model) if "__call__" in vars(type(module))}
        calls = {kind: vars(kind)["__call__"] for kind in kinds}
        for kind, call in calls.items():
            setattr(kind, "__call__", self._recorded(call))  # noqa: B010 (mypy refuses the assignment)
        try:
            yield
        finally:
            for kind, call in calls.items():
                setattr(kind, "__call__", call)  # noqa: B010

    def _recorded(self, call: Callable[..., Any]) -> Callable[..., Any]:
        def recorded(module: nnx.Module, *arguments: Any, **options: Any) -> Any:
            output = call(module, *arguments, **options)
            self.record(module.recorded_as, output)  # type: ignore[attr-defined]
            return output

        return recorded


def _recording_graph(config: ModelConfig) -> tuple[nnx.GraphDef, Recorder]:
    """The structure of a model whose modules know their names, and the recorder of their outputs. Its layers run one by
    one, outside of any scan, so that their outputs are those of the whole trace."""
    recorder = Recorder()
    config = dataclasses.replace(config, remat="none", unroll=config.layers)
    parallel = Parallel(attend=recorder.attend(attend_with(config)))
    model = nnx.eval_shape(lambda: FlagDiT(config, rngs=ParameterKeys(0), parallel=parallel))
    for path, module in nnx.iter_modules(model):
        module.recorded_as = ".".join(map(str, path)) or "prediction"  # type: ignore[attr-defined]
    return nnx.split(model)[0], recorder


def _rms(arrays: Sequence[Array]) -> Array:
    total = sum(jnp.sum(array**2) for array in arrays)
    return jnp.sqrt(total / sum(array.size for array in arrays))


def _slope(widths: Sequence[int], sizes: Sequence[float]) -> float | None:
    """The exponent of the power of the width that fits best; None if an output is zero."""
    if min(sizes) < NEGLIGIBLE:
        return None
    return float(np.polyfit(np.log(widths), np.log(sizes), 1)[0])
