"""The lines that a run prints before it starts: run, model, what trains unless all does, devices, data and batch."""

from collections.abc import Sized

import jax
from jax.sharding import Mesh

from lumina_jax.config import Config
from lumina_jax.models.adapters import Decomposed, Factors
from lumina_jax.models.precision import memory_words
from lumina_jax.parallel.mesh import axes_of
from lumina_jax.run import run_folder
from lumina_jax.training.state import initial_shapes, parameter_count


def header_lines(config: Config, mesh: Mesh, *, source: Sized, row_tokens: int) -> list[str]:
    """The lines of the header.

    Args:
      source: the samples to train on.
      row_tokens: the number of tokens in a row of a batch.
    """
    model, data, run = config.model, config.data, config.run
    size = f"{short_number(parameter_count(model))} parameters: layers {model.layers}, width {model.width}"
    heads = f"heads {model.heads}, {model.compute_dtype}"
    devices = f"{mesh.size} {jax.devices()[0].device_kind}"
    processes = f" in {jax.process_count()} processes" if jax.process_count() > 1 else ""
    axes = ", ".join(f"{name} {mesh.shape[name]}" for name in axes_of(mesh, "data", "fsdp", "sequence", "tensor"))
    origin = (
        f"a mixture of {len(data.mixture)} sources"
        if data.mixture
        else f"{data.source.kind} {data.source.path}".strip()
    )
    packed = f" with up to {data.samples_per_row} samples each" if data.samples_per_row > 1 else ""
    tokens = data.batch_rows * row_tokens
    parts = config.optimizer.accumulate
    micro = f", in {parts} parts one after another" if parts > 1 else ""
    lines = [
        f"run      {run_folder(config)}, {run.steps:,} steps",
        f"model    {size}, {heads}",
        f"devices  {devices}{processes}" + (f", mesh: {axes}" if axes else ""),
        f"data     {len(source):,} samples of {origin}",
        f"batch    {data.batch_rows} rows of {row_tokens} tokens{packed}: {tokens:,} tokens a step{micro}",
    ]
    return [*lines[:2], f"trains   {trained_line(config)}", *lines[2:]] if config.finetune.is_partial else lines


def trained_line(config: Config) -> str:
    """What trains, what the optimiser keeps of it, and the base: "adapters of 12 matrices, 1.05M of 2.61B values (0.04
    %); moments and average take 12.6 MB, the base 2.7 GB in int8"."""
    state = initial_shapes(config)
    trained = state.parameters
    adapters = sum(isinstance(value, Factors | Decomposed) for value in trained.values())
    kinds = [f"adapters of {adapters} matrices"] * bool(adapters)
    kinds += [f"{len(trained) - adapters} parameters themselves"] * (len(trained) > adapters)
    assert state.base is not None
    count, total = sum(leaf.size for leaf in jax.tree.leaves(trained)), parameter_count(config.model)
    kept, base = (
        sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))
        for tree in ((state.optimizer, state.ema), state.base.parameters)
    )
    return (
        f"{' and '.join(kinds)}, {short_number(count)} of {short_number(total)} values ({100 * count / total:.2g} %); "
        f"moments and average take {kept / 1e6:.3g} MB, the base {memory_words(base)} in {config.finetune.base}"
    )


def short_number(number: int) -> str:
    """Three digits and a unit: 950, 1.71M, 13.2M, 2.61B."""
    for unit, name in ((1e9, "B"), (1e6, "M"), (1e3, "K")):
        if number >= unit:
            return f"{number / unit:.3g}{name}" if number < 999.5 * unit else f"{number / unit:.0f}{name}"
    return str(number)
