"""lumina gates RUN: how open each head is for the text, and a model without the text of the most closed heads.

Prints tanh(gate) of each layer and head (Lumina-T2X, section 2.2). With --keep or --threshold it says which heads would
attend to the text, and what a prediction costs before and after; with --out it writes that model, which `lumina
sample`, `evaluate`, `convert` and --run.init-from take as any run. Each layer keeps the same number of heads, its most
open ones; heads that share keys stay together. docs/gates.md has numbers.
"""

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import tyro
from jaxtyping import Float, Int

from lumina_jax.config import ModelConfig
from lumina_jax.config_files import load_config
from lumina_jax.documents import json_text
from lumina_jax.failures import reported
from lumina_jax.launch import keep_memory_on_cpu
from lumina_jax.run import read_model

if TYPE_CHECKING:
    from lumina_jax.generation.pipeline import Pipeline
    from lumina_jax.pruning.models import PredictionCost

LIMITS = (0.01, 0.02, 0.05, 0.1)
"""Values of |tanh(gate)| below which heads are counted."""
HEADS_OF_A_LINE = 16
CURVE_POINTS = 8
"""Most numbers of heads in the curve, besides 0."""


@dataclass(frozen=True)
class Arguments:
    run: Annotated[Path, tyro.conf.Positional]
    """Folder of a run, or of weights that `convert` made."""
    config: str | None = None
    """A configuration, by name or by path, for converted weights: all but the model, which is theirs. To print their
    gates needs none."""
    step: int | None = None
    """Checkpoint to read; default: the newest."""
    keep: float | None = None
    """Share of the heads of each layer that attend to the text, above 0 and at most 1, rounded up to whole heads."""
    threshold: float | None = None
    """Keep as many heads in each layer as the layer with the most has with |tanh(gate)| of at least this."""
    out: Path | None = None
    """New folder for the pruned model."""
    curve: bool = False
    """Print the held-out loss for several numbers of heads."""
    loss_samples: int = 256
    """Samples of each source at which the loss is measured, at most."""
    batch: int = 16
    """Samples of the prediction that is timed, and rows of tokens for the loss."""
    plot: Path | None = None
    """Draw the gates into this file (.png)."""
    json: Path | None = None
    """File for all numbers."""


def main(words: Sequence[str]) -> int:
    arguments = tyro.cli(Arguments, args=words, prog="lumina gates", description=__doc__)
    keep_memory_on_cpu()
    with reported():
        show_gates(arguments)
    return 0


def show_gates(arguments: Arguments) -> None:
    """The whole command.

    Raises:
      ValueError: the run has no gates, or the arguments ask for what cannot be; nothing was written.
    """
    from lumina_jax.commands.convert import open_source
    from lumina_jax.parts import write_file
    from lumina_jax.pruning.figure import gates_figure
    from lumina_jax.pruning.heads import check_gates, kept, text_gates
    from lumina_jax.trained import open_run

    check(arguments)
    model = read_model(arguments.run)
    check_gates(model)
    source = open_source(arguments.run, "jax", arguments.step)
    gates = text_gates({"blocks": {"text": {"gate": source.ours["blocks.text.gate"]}}}, model)
    count = wanted_heads(arguments, gates, model)
    chosen = None if count is None else kept(gates, model, count)
    print(source.origin)
    print("\n".join(table(gates, chosen)))
    found: dict[str, Any] = {"run": arguments.run.resolve().name, "gates": gates.tolist(), "text_heads": count}
    if arguments.plot is not None:
        write_file(arguments.plot.parent, arguments.plot.name, gates_figure(gates, chosen))
        print(f"{arguments.plot} shows them")
    if count is not None or arguments.curve:
        other = None if arguments.config is None else load_config(arguments.config)
        pipeline = open_run(arguments.run, arguments.step, other)
        found["step"] = pipeline.step
        if count is not None:
            found["before"], found["after"] = prune(pipeline, count, arguments)
        if arguments.curve:
            found["curve"] = curve(pipeline, arguments)
    if arguments.json is not None:
        write_file(arguments.json.parent, arguments.json.name, json_text(found).encode())


def check(arguments: Arguments) -> None:
    """Refuse arguments that contradict one another, and folders that cannot be written to, before anything is read."""
    from lumina_jax.parts import check_writable
    from lumina_jax.pruning.figure import check_figures

    if arguments.keep is not None and arguments.threshold is not None:
        raise ValueError("--keep and --threshold both choose how many heads are kept; leave out one of them")
    if arguments.out is not None:
        if arguments.keep is None and arguments.threshold is None:
            raise ValueError("--out needs the heads to keep: --keep 0.5, or --threshold 0.02")
        if arguments.out.exists() or arguments.out.is_symlink():
            raise ValueError(f"--out {arguments.out} exists; name a new folder")
    for name in ("batch", "loss_samples"):
        if getattr(arguments, name) < 1:
            raise ValueError(f"{name}={getattr(arguments, name)} must be at least 1")
    if arguments.plot is not None:
        check_figures()
    for file in (arguments.plot, arguments.json):
        if file is not None:
            check_writable(file.parent)


def wanted_heads(arguments: Arguments, gates: Float[np.ndarray, "n h"], model: ModelConfig) -> int | None:
    """The heads of a layer that are to attend to the text; None: nothing is asked."""
    from lumina_jax.pruning.heads import heads_above, heads_for_share

    if arguments.keep is not None:
        return heads_for_share(model, arguments.keep)
    return None if arguments.threshold is None else heads_above(gates, model, arguments.threshold)


def table(gates: Float[np.ndarray, "n h"], chosen: Int[np.ndarray, "n g"] | None) -> Iterator[str]:
    """tanh(gate) by layer and head; those of heads that would lose the text are in brackets."""
    size = np.abs(gates)
    for start in range(0, gates.shape[1], HEADS_OF_A_LINE):
        heads = range(start, min(start + HEADS_OF_A_LINE, gates.shape[1]))
        yield "layer, head" + "".join(f"{head:>8} " for head in heads)
        for layer, row in enumerate(gates):
            closed = [chosen is not None and head not in chosen[layer] for head in heads]
            values = (
                f"({row[head]:+.3f})" if is_closed else f"{row[head]:+.3f} " for head, is_closed in zip(heads, closed)
            )
            yield f"{layer:>11}" + "".join(f"{value:>9}" for value in values)
    yield (
        f"|tanh(gate)| is {size.min():.4f} to {size.max():.4f}, with a median of {np.median(size):.4f}; below "
        + ", ".join(f"{limit:g}: {np.mean(size < limit):.0%}" for limit in LIMITS)
    )
    if chosen is not None:
        yield f"{chosen.shape[1]} of {gates.shape[1]} heads in each layer are kept"


def prune(pipeline: "Pipeline", count: int, arguments: Arguments) -> tuple[dict[str, Any], dict[str, Any]]:
    """Prints the costs before and after, and writes the pruned model if a folder is given; returns the costs."""
    from lumina_jax.pruning.models import prediction_costs, pruned_pipeline
    from lumina_jax.trained import save

    small = pruned_pipeline(pipeline, count)
    before, after = prediction_costs([pipeline, small], arguments.batch)
    print("\n".join(compared(before, after, arguments.batch)))
    if arguments.out is not None:
        print(f"the pruned model is in {save(small, arguments.out)}")
    return dataclasses.asdict(before), dataclasses.asdict(after)


def compared(before: "PredictionCost", after: "PredictionCost", batch: int) -> Iterator[str]:
    """Each number of a prediction before and after, and the change."""
    yield f"a prediction for {batch} samples      before       after"
    rows = {
        "GFLOPs": ("flops", 1e9, ".4g"),
        "GFLOPs of the text": ("text_flops", 1e9, ".4g"),
        "GFLOPs by XLA's count": ("xla_flops", 1e9, ".4g"),
        "milliseconds": ("seconds", 1e-3, ".4g"),
        "parameters": ("parameters", 1, ",.0f"),
    }
    for name, (field, unit, form) in rows.items():
        old, new = (getattr(cost, field) / unit for cost in (before, after))
        yield f"  {name:<24}{old:>12{form}}{new:>12{form}}  {new / old - 1:+.1%}"


def curve(pipeline: "Pipeline", arguments: Arguments) -> list[dict[str, Any]]:
    """Prints the loss for several numbers of heads, from all to none, and returns it."""
    from lumina_jax.pruning.models import quality_curve

    model = pipeline.config.model
    group = model.heads // model.key_heads
    counts = group * np.unique(np.linspace(0, model.text_key_heads, CURVE_POINTS + 1).round().astype(int))[::-1]
    batch = min(arguments.batch, pipeline.config.data.batch_rows)
    found: list[dict[str, Any]] = []
    for count, losses in quality_curve(pipeline, counts.tolist(), samples=arguments.loss_samples, batch=batch):
        if not found:
            print("loss at fixed samples, times and noise with the text of some heads of each layer")
            print("   heads   share" + "".join(f"{name:>26}" for name in losses))
        found.append({"text_heads": count, "losses": losses})
        whole = found[0]["losses"]
        columns = (f"{f'{loss:.4f} ({loss / whole[name] - 1:+.1%})':>26}" for name, loss in losses.items())
        print(f"{count:>8}{count / model.heads:>8.0%}{''.join(columns)}", flush=True)
    return found
