"""lumina convert SRC DST --from LAYOUT --to LAYOUT: weights from one layout to another.

lumina: a released checkpoint, which is a folder with consolidated.00-of-01 and model_args.pth or config.json, or one
file. diffusers: a pipeline or its transformer/. jax: the layout of lumina_jax; SRC may also be the folder of a run.
peft, kohya: only the adapter of a run, or the one that --adapter names, in these names. One tensor is in memory at a
time. DST is created when everything is written.
"""

import dataclasses
import functools
import math
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro
from etils import epath

from lumina_jax.failures import reported
from lumina_jax.run import checkpoints_of

if TYPE_CHECKING:
    from lumina_jax.config import Config
    from lumina_jax.interop.sources import WeightSource

LARGEST_SAMPLE = 2**16
LayoutName = Literal["lumina", "diffusers", "jax"]
WrittenLayout = Literal["lumina", "diffusers", "jax", "peft", "kohya"]


@dataclass(frozen=True)
class Arguments:
    source: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="SRC")]
    """Folder or file to read, or a downloaded repository of the Hugging Face hub as owner/name."""
    destination: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="DST")]
    """Folder to write; it must be empty or not exist."""
    source_layout: Annotated[LayoutName, tyro.conf.arg(name="from")]
    """Layout of SRC."""
    layout: Annotated[WrittenLayout, tyro.conf.arg(name="to")]
    """Layout of DST."""
    dry_run: bool = False
    """Print how each parameter is converted, and write nothing."""
    weights: Literal["ema", "params"] | None = None
    """Moving average or parameters, if SRC contains both; default: the average if there is one."""
    step: int | None = None
    """Step of the checkpoint, if SRC is a run; default: the newest."""
    dtype: Literal["float32", "bfloat16"] | None = None
    """Type of the weights to write; default: the stored type."""
    shard_gb: float = 5.0
    """Split larger files (except in the lumina layout, whose reader needs a single file)."""
    sample_size: int | None = None
    """Side of the latents in training, which is the default size of a diffusers pipeline; default: 128."""
    overwrite: bool = False
    """Replace an unchanged export that this command wrote to DST earlier."""
    adapter: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """An adapter to merge into the weights, as FOLDER or FOLDER:STRENGTH; -1 takes out one that was merged. May be
    given several times. The folder is a run that trained adapters, one of PEFT, or a file with kohya's names."""
    components: Path | None = None
    """Folder or downloaded repository whose vae/, text_encoder/ and tokenizer/ are copied into a diffusers pipeline."""


def main(words: Sequence[str]) -> int:
    arguments = tyro.cli(Arguments, args=words, prog="lumina convert", description=__doc__)
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    with reported():
        convert(arguments)
    return 0


def convert(arguments: Arguments) -> None:
    """Check everything, and then write.

    Raises:
      ValueError, OSError: the source or the destination cannot be used; nothing was written.
    """
    from lumina_jax.interop.export import mapping_table, plan_export, write_export
    from lumina_jax.interop.sources import resolved
    from lumina_jax.weights.folders import unfinished
    from lumina_jax.weights.writer import total_bytes

    if not 0 < arguments.shard_gb < math.inf:
        raise ValueError(f"--shard-gb {arguments.shard_gb} must be a positive number")
    if arguments.sample_size is not None and not 0 < arguments.sample_size <= LARGEST_SAMPLE:
        raise ValueError(f"--sample-size {arguments.sample_size} must be from 1 to {LARGEST_SAMPLE}")
    components = arguments.components and resolved(arguments.components, "pipeline")
    arguments = dataclasses.replace(arguments, source=resolved(arguments.source, "checkpoint"), components=components)
    _check_apart(arguments)
    if arguments.layout in ("peft", "kohya"):
        export_adapter(arguments)
        return
    source = opened(arguments)
    export = plan_export(source, arguments.layout, arguments.dtype, arguments.sample_size)
    total, count = total_bytes(export.plan), sum(tensor.size for tensor in export.plan)
    for line in (f"from {source.origin}", *export.source.notes):
        print(line)
    if arguments.dry_run:
        print_table(mapping_table(export), arguments.layout)
    print(f"{count:,} parameters in {len(export.plan)} tensors, {total / 1e9:.3f} GB")
    if arguments.dry_run:
        return
    for path in unfinished(arguments.destination):
        print(f"{path} is left over from a conversion; remove it, unless that conversion is still running")
    with progress_bar(total) as progress:
        write_export(
            export,
            arguments.destination,
            shard_bytes=int(arguments.shard_gb * 1e9),
            overwrite=arguments.overwrite,
            components=components,
            progress=progress,
        )
    print(f"written to {arguments.destination}")


def export_adapter(arguments: Arguments) -> None:
    """Write the adapter of a run, or the one that --adapter names, with the names of PEFT or of kohya.

    Raises:
      ValueError: there is no such adapter, or the other code has no such model.
    """
    from lumina_jax.interop.converted import read_model
    from lumina_jax.interop.kohya import write_kohya
    from lumina_jax.interop.peft import write_peft
    from lumina_jax.trained import open_adapter, strength_of

    words = [strength_of(word) for word in arguments.adapter] or [(str(arguments.source), 1.0)]
    if arguments.source_layout != "jax" or len(words) > 1 or words[0][1] != 1:
        raise ValueError(
            f"--to {arguments.layout} writes the adapter of a run; name the run with --from jax, or its base and one "
            "--adapter of strength 1"
        )
    model = read_model(arguments.source)
    adapter = open_adapter(words[0][0], model)
    print(f"adapters of {len(adapter.factors)} matrices")
    if not arguments.dry_run:
        write = write_peft if arguments.layout == "peft" else write_kohya
        write(adapter, model, arguments.destination, overwrite=arguments.overwrite)
        print(f"written to {arguments.destination}")


def opened(arguments: Arguments) -> "WeightSource":
    """The weights of the source, with the adapters that are named.

    Raises:
      ValueError: the source cannot be used, or an adapter is of another model, or was trained for other weights.
    """
    from lumina_jax.interop.peft import merged_source
    from lumina_jax.trained import open_adapter, strength_of

    keeps_all = arguments.layout == "jax"
    source = open_source(
        arguments.source, arguments.source_layout, arguments.step, arguments.weights, keeps_all=keeps_all
    )
    for folder, strength in map(strength_of, arguments.adapter):
        source = merged_source(source, open_adapter(folder, source.config), strength, folder)
    return source


def open_source(
    folder: Path,
    layout: str,
    step: int | None,
    weights: Literal["ema", "params"] | None = None,
    *,
    keeps_all: bool = True,
) -> "WeightSource":
    """Open weights in a layout; in ours, "jax", also those of a run, see `run_source`."""
    from lumina_jax.interop.sources import open_weights

    if layout == "jax" and epath.Path(checkpoints_of(folder)).is_dir():
        return run_source(folder, step, weights or "ema", keeps_all=keeps_all)
    if step is not None:
        raise ValueError(f"--step {step} needs the folder of a run, but {folder} is not one; leave it out")
    return open_weights(folder, layout, weights)


def run_source(
    folder: Path, step: int | None, weights: Literal["ema", "params"], *, keeps_all: bool = True
) -> "WeightSource":
    """Open a checkpoint of a run, which is read one parameter at a time.

    Args:
      keeps_all: False drops the [nextframe] token of a model trained on single frames only, which never uses it.
    """
    import jax
    import jax.numpy as jnp
    import numpy as np

    from lumina_jax.config import PictureConfig
    from lumina_jax.interop.converted import parameter_shapes
    from lumina_jax.interop.sources import WeightSource
    from lumina_jax.models.division import one_device_shardings
    from lumina_jax.models.precision import abstract_parameters
    from lumina_jax.trained import trained_parameters
    from lumina_jax.training.checkpoint import Checkpoints
    from lumina_jax.weights.modules import named_parameters
    from lumina_jax.weights.tensors import ComputedTensors

    checkpoints = Checkpoints(checkpoints_of(folder), read_only=True)
    step = checkpoints.chosen(step)
    trained = checkpoints.restore_config(step)
    config, notes = trained.model, [trained_with(trained)]
    if not keeps_all and config.nextframe and all(isinstance(part.media, PictureConfig) for part in trained.data.parts):
        config = dataclasses.replace(config, nextframe=False)
        notes.append("removed: nextframe_token, because the model was trained on single frames and never uses it")
    here = jax.sharding.SingleDeviceSharding(jax.devices("cpu")[0])
    shapes = {name: (shape, np.dtype(np.float32)) for name, shape in parameter_shapes(config).items()}
    abstract = {name: jax.ShapeDtypeStruct(shape, jnp.float32, sharding=here) for name, (shape, _) in shapes.items()}
    part = {"ema": "ema", "params": "parameters"}[weights]

    if trained.finetune.is_partial:
        nested = abstract_parameters(trained.model, "float32", one_device_shardings(trained.model, here))
        whole = named_parameters(trained_parameters(folder, trained, nested, step, part)[0])
        notes.append(f"merged: what was trained into {trained.run.init_from}")

    @functools.lru_cache(maxsize=1)
    def read(name: str) -> np.ndarray:
        if trained.finetune.is_partial:
            return np.asarray(whole[name])
        return np.asarray(checkpoints.restore_subtree(step, part, {name: abstract[name]})[name])

    note = f"weights: {'the moving average (ema)' if weights == 'ema' else 'the parameters (params)'}"
    origin = f"{folder.resolve().name} at step {step}, a run of lumina_jax"
    return WeightSource(config, ComputedTensors(shapes, read), origin, (note, *notes))


def trained_with(config: "Config") -> str:
    """Return a note on the settings that are needed for sampling and cannot be inferred from the tensors."""
    media = config.data.media
    settings = {
        "flow.path": config.flow.path,
        "flow.prediction": config.flow.prediction,
        "data.media": media.kind,
        **{f"data.{name}": getattr(media, name) for name in media.setting_names()},
        "vae.path": config.vae.path or "none (pixels)",
    }
    if config.model.conditioning == "text":
        settings["text.encoder"] = config.text.encoder
    return f"trained with {', '.join(f'{name}={value}' for name, value in settings.items())}"


def print_table(rows: Sequence[tuple[str, str, str, str, str]], layout: str) -> None:
    """Print one line for each parameter."""
    for source, ours, target, kind, steps in rows:
        names = list(dict.fromkeys((source, ours, target) if layout != "jax" else (source, ours)))
        print(f"{' -> '.join(names)}  {kind}  {steps}")


@contextmanager
def progress_bar(total: int) -> Iterator[Callable[[int], object]]:
    """Yield a function to call with the number of bytes written, which updates a bar in a terminal."""
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TimeRemainingColumn, TransferSpeedColumn

    console = Console(stderr=True)
    columns = (BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        task = progress.add_task("", total=total)
        yield lambda count: progress.advance(task, count)


def _check_apart(arguments: Arguments) -> None:
    """Check that the destination and the folders that are read do not contain each other."""
    read, written = arguments.source.resolve(), arguments.destination.resolve()
    if read == written or written in read.parents or read in written.parents:
        raise ValueError(
            f"{arguments.destination} and {arguments.source} must not contain each other; name another destination"
        )
    if arguments.components is not None and arguments.components.resolve() in written.parents:
        raise ValueError(
            f"{arguments.destination} must not be in {arguments.components}, which is copied; name another folder"
        )
