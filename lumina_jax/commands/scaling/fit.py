"""lumina scaling fit RUNS.jsonl: the law L = E + A N^-a + B D^-b of a grid of runs, and what it predicts.

Each line of RUNS.jsonl is {"recipe", "parameters", "samples", "flops", "loss", "seed"}. The law is fitted by variable
projection, and IsoFLOP parabolas stand beside it. The intervals of E, A, a, B and b hold together with 90 % confidence,
those of predictions one by one; they are of likelihood ratios that a bootstrap of the runs calibrates
(docs/scaling-laws.md).
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from lumina_jax.failures import reported
from lumina_jax.scaling.settings import FitSettings

if TYPE_CHECKING:
    from lumina_jax.scaling.fitting import ScalingFit
    from lumina_jax.scaling.parabolas import IsoFlops


@dataclass(frozen=True)
class Arguments:
    runs: Annotated[Path, tyro.conf.Positional]
    """A file with one run a line."""
    settings: Annotated[FitSettings, tyro.conf.arg(name="")]
    recipe: str | None = None
    """The recipe to fit, if the file holds several."""
    json: Path | None = None
    """Write all numbers into this file."""


def main(words: Sequence[str]) -> int:
    with reported():
        fit(tyro.cli(Arguments, args=words, prog="lumina scaling fit", description=__doc__))
    return 0


def fit(arguments: Arguments) -> None:
    from lumina_jax.parts import check_writable, write_file
    from lumina_jax.scaling.fitting import fit_runs
    from lumina_jax.scaling.table import read_runs, runs_of_recipe

    if arguments.json:
        check_writable(arguments.json.parent)
    found = fit_runs(runs_of_recipe(read_runs(arguments.runs), arguments.recipe), arguments.settings)
    print("\n".join(lines(found)))
    if arguments.json:
        write_file(arguments.json.parent, arguments.json.name, json.dumps(found.as_json(), indent=1).encode() + b"\n")
        print(f"\n{arguments.json} holds every number")


def lines(found: "ScalingFit") -> Iterator[str]:
    """The fit as text."""
    from lumina_jax.scaling.fitting import untold

    law, noise, unknown = found.fit.law, found.fit, untold(found.confidence)
    yield f"{found.recipe}: {found.runs} runs in {len(noise.cells)} cells"
    yield "L(N, D) = E + A N^-a + B D^-b, and 90 % intervals that hold together"
    for name, (low, high) in found.confidence.joint.intervals().items():
        doubt = "  cannot be told" if name in unknown else ""
        yield f"  {name}  {getattr(law, name):<12.5g} {low:.5g} to {high:.5g}{doubt}"
    yield f"noise of a run: {noise.scale:.3%} of {'its' if noise.noise == 'relative' else 'the mean'} loss"
    cost = found.cost
    shape = f"{cost.coefficient:.4g} N^{cost.exponent:.4f} to {cost.error:.2%}"
    yield f"FLOPs per sample: {shape}" + ("; interpolated from the table instead" if cost.knots is not None else "")
    if found.predictions:
        yield "compute-optimal models, and the loss of one run with its 90 % interval"
    for one in found.predictions:
        low, high = one.parameters_range
        yield (
            f"  {one.flops:.3g} FLOPs: N {one.parameters:.4g} ({low:.3g} to {high:.3g}), D {one.samples:.4g}, "
            f"L {one.loss:.5g} ({one.low:.5g} to {one.high:.5g})"
        )
    for hidden in found.held_out:
        seen = hidden.prediction
        yield (
            f"held out: {seen.flops:.3g} FLOPs, N {seen.parameters:.4g}: predicted {seen.loss:.5g} ({seen.low:.5g} to "
            f"{seen.high:.5g}), observed {hidden.loss:.5g}: error {hidden.error:+.2%}, "
            f"{'inside' if hidden.is_inside else 'OUTSIDE'} the interval"
        )
    yield from _parabola_lines(found.iso)
    yield from (f"note: {note}" for note in found.notes)


def _parabola_lines(iso: "IsoFlops") -> Iterator[str]:
    if not iso.budgets:
        yield "IsoFLOP parabolas: no budget has runs of 3 sizes"
        return
    yield "IsoFLOP parabolas"
    for one in iso.budgets:
        best = one.why_not or f"N {one.parameters:.4g}, D {one.samples:.4g}, L {one.loss:.5g}"
        yield f"  {one.flops:.3g} FLOPs: {best}"
    for name, power in (("N", iso.parameters), ("D", iso.samples), ("L", iso.loss)):
        if power is not None:
            value, low, high = power.exponent
            yield f"  {name} = {power.coefficient[0]:.4g} C^{value:.4f} (90 % interval {low:.4f} to {high:.4f})"
