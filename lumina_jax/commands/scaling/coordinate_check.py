"""lumina scaling coordinate-check CONFIG: are activations and updates of one size at every width?

Trains models of several widths for a few steps on one batch with one noise, and prints for each kind of layer the root
mean square of its output and of the change of that output, with the power of the width by which they grow. With
--model.parametrization mup --model.base-width WIDTH all powers should be near 0. Any setting of the configuration is a
flag, as for `lumina train`, but optimizer.eps, which is negligible here. The status is 1 if a layer is not flat.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import tyro

from lumina_jax.config import Config
from lumina_jax.failures import reported
from lumina_jax.flags import parse_config
from lumina_jax.launch import keep_memory_on_cpu

if TYPE_CHECKING:
    from lumina_jax.scaling.coordinates import CoordinateCheck
    from lumina_jax.training.step import TrainBatch


@dataclass(frozen=True)
class Arguments:
    factors: tuple[int, ...] = (1, 2, 4, 8)
    """Factors on the width of the configuration."""
    steps: int = 4
    """Steps to train at each width."""
    fixed_heads: bool = False
    """Let heads grow in width instead of in number."""
    tolerance: float = 0.3
    """A layer is flat if output and change grow by a power of the width of at most this, up or down."""
    json: Path | None = None
    """Write all numbers into this file."""
    plot: Path | None = None
    """Draw all sizes over the width into this file (.png)."""


def main(words: Sequence[str]) -> int:
    program = "lumina scaling coordinate-check"
    with_config = words[1:] if words and not words[0].startswith("-") else words
    arguments, rest = tyro.cli(
        Arguments, args=with_config, prog=f"{program} CONFIG", description=__doc__, return_unknown_args=True
    )
    with reported():
        keep_memory_on_cpu()
        check_arguments(arguments)
        config = parse_config([*words[:1], *rest], __doc__ or "", command="scaling coordinate-check")
        status = run(arguments, config)
    return status


def check_arguments(arguments: Arguments) -> None:
    """Refuse what cannot be measured or written, before anything is trained."""
    from lumina_jax.parts import check_writable

    if len(set(arguments.factors)) < 2 or min(arguments.factors) < 1:
        raise ValueError(f"--factors must be at least two different widths, but are {arguments.factors}; give 1 2 4 8")
    if arguments.steps < 1:
        raise ValueError(f"--steps={arguments.steps} must be at least 1")
    if arguments.plot is not None:
        from lumina_jax.scaling.coordinate_plot import check_plots

        check_plots()
    for file in (arguments.json, arguments.plot):
        if file is not None:
            check_writable(file.parent)


def run(arguments: Arguments, config: Config) -> int:
    """Measure, print and write; 1 if a layer is not flat."""
    from lumina_jax.parallel.mesh import check_mesh, configured_mesh
    from lumina_jax.parts import write_file
    from lumina_jax.scaling.coordinates import coordinate_check, widened

    for factor in arguments.factors:  # which refuses widths that there cannot be
        config.replace(model=widened(config.model, factor, fixed_heads=arguments.fixed_heads))
    mesh = configured_mesh(config.mesh)
    check_mesh(config, mesh)
    found = coordinate_check(
        config,
        first_batch(config, mesh),
        mesh,
        steps=arguments.steps,
        factors=arguments.factors,
        fixed_heads=arguments.fixed_heads,
        say=lambda line: print(line, flush=True),
    )
    print("\n".join(lines(found, arguments.tolerance)))
    if arguments.json is not None:
        content = json.dumps(as_json(found, config, arguments), indent=1).encode() + b"\n"
        write_file(arguments.json.parent, arguments.json.name, content)
        print(f"{arguments.json} holds every number")
    if arguments.plot is not None:
        from lumina_jax.scaling.coordinate_plot import drawn

        write_file(arguments.plot.parent, arguments.plot.name, drawn(found, arguments.tolerance))
        print(f"{arguments.plot} shows the sizes over the width")
    return 1 if found.not_flat(arguments.tolerance) else 0


def first_batch(config: Config, mesh: Any) -> "TrainBatch":
    """The batch that a run of this configuration would begin with."""
    from lumina_jax.encoders.configured import encoder_of
    from lumina_jax.modalities import load_autoencoders, modalities_of_sources
    from lumina_jax.training.feed import Feed
    from lumina_jax.training_data import encoded_stream, opened_source

    source = opened_source(config)
    parts = encoder_of(config), modalities_of_sources(config), load_autoencoders(config)
    with encoded_stream(config, mesh, source, *parts) as stream:
        return next(Feed(stream, mesh, config.data.batch_rows))


def lines(found: "CoordinateCheck", tolerance: float) -> Iterator[str]:
    """The sizes of outputs and of their changes, each with its power of the width, as a table."""
    name_width = max(map(len, found.sizes))
    widths = "".join(f"{width:>9}" for width in found.widths)
    yield f"\n{'':{name_width}}  output at width{'':{max(0, len(widths) - 16)}}    power  change since step 0"
    yield f"{'':{name_width}}{widths}{'':9}{widths}    power"
    for name, slopes in found.slopes.items():
        output = "".join(f"{size.output:9.2g}" for size in found.sizes[name])
        change = "".join(f"{size.change:9.2g}" for size in found.sizes[name])
        flat = "" if slopes.is_flat(tolerance) else "  not flat"
        yield f"{name:{name_width}}{output}{_power(slopes.output)}{change}{_power(slopes.change)}{flat}"
    steep = found.not_flat(tolerance)
    yield (
        f"\n{len(steep)} of {len(found.sizes)} kinds of layer are not flat within {tolerance}: {', '.join(steep)}"
        if steep
        else f"\nall {len(found.sizes)} kinds of layer are flat within {tolerance}"
    )


def as_json(found: "CoordinateCheck", config: Config, arguments: Arguments) -> dict[str, Any]:
    """Every number of the check."""
    return {
        "parametrization": config.model.parametrization,
        "optimizer": config.optimizer.name,
        "steps": arguments.steps,
        "tolerance": arguments.tolerance,
        "widths": found.widths,
        "layers": {
            name: {
                "output": [size.output for size in found.sizes[name]],
                "change": [size.change for size in found.sizes[name]],
                "power_of_output": slopes.output,
                "power_of_change": slopes.change,
                "is_flat": slopes.is_flat(arguments.tolerance),
            }
            for name, slopes in found.slopes.items()
        },
    }


def _power(slope: float | None) -> str:
    return f"{'zero':>9}" if slope is None else f"{slope:>9.2f}"
