"""Measurements as a table for the terminal: a line for each contestant, and for each of its kernels."""

from collections.abc import Iterator, Sequence

from lumina_jax.chips import parse_topology
from lumina_jax.kernel_bench.estimate import Estimate
from lumina_jax.kernel_bench.measurements import Measurement
from lumina_jax.kernel_bench.problems import Problem

SLOTS = ("MXU", "VALU", "XLU", "EUP", "VLOAD", "VSTORE")
"""Matrix unit, arithmetic, cross-lane, transcendental, loads, stores; the rest is shown by --json."""
HEADINGS = (
    f"{'':<18}{'us':>9}{'cycles':>13}{'floor':>7}  {'main loop':>15}  "
    + "".join(f"{slot:>7}" for slot in SLOTS)
    + f"{'spills':>8}{'fills':>7}{'VMEM':>7}{'around':>8}  blocks"
)


def heading(problem: Problem, topology: str) -> str:
    chip = parse_topology(topology).chip
    floor = chip.microseconds(problem.floor_cycles(chip))
    return f"\n{topology}: {problem}; floor of the matrix units {floor:.4g} us\n{HEADINGS}"


def lines(measured: Measurement) -> Iterator[str]:
    """The lines of one measurement; the main loop and its slots are those of the costliest kernel."""
    name = measured.trial.contestant
    if measured.error is not None:
        yield f"{name:<18}  {measured.error}"
        return
    blocks = " ".join(f"{key}={size}" for key, size in measured.trial.blocks.items())
    share, around = f"{measured.share_of_floor:.1%}", f"{measured.around_bytes / 1e6:.4g}"
    several = len(measured.kernels) > 1
    costliest = max(measured.kernels, key=lambda kernel: kernel.cycles)
    yield (
        f"{name:<18}{measured.microseconds:9.1f}{measured.cycles:13.0f}{share:>7}  "
        f"{'' if several else _details(costliest):86}{around:>8}  {blocks}"
    )
    for kernel in measured.kernels if several else ():
        label, microseconds = f"  {kernel.kernel}"[:17], measured.chip.microseconds(kernel.cycles)
        yield f"{label:<18}{microseconds:9.1f}{kernel.cycles:13.0f}{'':7}  {_details(kernel)}"
    for note in measured.notes:
        yield f"{'':<18}note: {note}"


def _details(kernel: Estimate) -> str:
    main = f"{kernel.main_bundles} x {kernel.main_runs:.0f}"
    slots = "".join(f"{kernel.slot_use.get(slot, 0.0):7.0%}" for slot in SLOTS)
    return f"{main:>15}  {slots}{kernel.spills:8}{kernel.fills:7}{kernel.vmem_bytes / 2**20:6.1f}M"


def summary(measurements: Sequence[Measurement], reference: str) -> Iterator[str]:
    """How the others compare with the contestant `reference`, or with the fastest where it is not among them."""
    good = [measured for measured in measurements if measured.error is None]
    if len(good) < 2:
        return
    best = next((measured for measured in good if measured.trial.contestant == reference), min(good, key=_time))
    for measured in sorted(good, key=_time):
        if measured is not best:
            ratio = measured.microseconds / best.microseconds
            yield f"{measured.trial.contestant} takes {ratio:.2f} x the cycles of {best.trial.contestant}"


def _time(measured: Measurement) -> float:
    return measured.microseconds
