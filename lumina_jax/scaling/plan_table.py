"""The plan of a grid in words: a table with one line for the seeds of each run, and totals."""

from collections.abc import Iterator, Sequence

from lumina_jax.scaling.grid import GridCell, Machine, ScalingGrid
from lumina_jax.scaling.machine import fits
from lumina_jax.scaling.plan import budget_word
from lumina_jax.training.header import short_number

HEADINGS = ("recipe", "size", "parameters", "budget", "steps", "batch", "rate", "samples", "FLOPs", "hours", "memory")


def plan_lines(grid: ScalingGrid, devices: int, price: float | None) -> Iterator[str]:
    """The table, and its totals.

    Args:
      devices: of the machine.
      price: of a device for an hour; None: not known.
    """
    groups: dict[tuple[str, str, float], list[GridCell]] = {}
    for cell in grid.cells:
        groups.setdefault((cell.recipe, str(cell.size), cell.budget), []).append(cell)
    has_mesh = any(cell.mesh is not None for cell in grid.cells)
    rows = [(*HEADINGS, *(("mesh",) if has_mesh else ())), *(_row(cells, has_mesh) for cells in groups.values())]
    widths = [max(map(len, column)) for column in zip(*rows)]
    for row in rows:
        yield "  ".join(text.rjust(width) for text, width in zip(row, widths)).rstrip()
    too_large = sorted({cell.name for cell in grid.cells if not fits(cell.memory, grid.machine)})
    if too_large:
        yield f"these runs may need more memory than a device has: {', '.join(too_large)}"
    yield from _totals(grid.cells, grid.machine, devices, price)


def _row(cells: Sequence[GridCell], has_mesh: bool) -> tuple[str, ...]:
    cell, seeds = cells[0], len(cells)
    times = f" x {seeds}" if seeds > 1 else ""
    return (
        cell.recipe,
        str(cell.size),
        short_number(cell.parameters),
        budget_word(cell.budget),
        f"{cell.steps:,}",
        f"{cell.batch:,}",
        f"{cell.rate:.3g}",
        short_number(cell.samples),
        f"{cell.flops:.3g}{times}",
        f"{cell.hours:.3g}{times}",
        f"{cell.memory / 1e9:.3g} GB",
        *((_mesh_words(cell),) if has_mesh else ()),
    )


def _mesh_words(cell: GridCell) -> str:
    assert cell.mesh is not None
    sizes = {"fsdp": cell.mesh.fsdp, "sequence": cell.mesh.sequence, "tensor": cell.mesh.tensor}
    words = [f"{name} {size}" for name, size in sizes.items() if size != 1]
    words += [f"{cell.accumulate} micro-batches"] if (cell.accumulate or 1) > 1 else []
    return ", ".join([*words, f"remat {cell.remat}"])


def _totals(cells: Sequence[GridCell], machine: Machine, devices: int, price: float | None) -> Iterator[str]:
    hours, flops = sum(cell.hours for cell in cells), sum(cell.flops for cell in cells)
    largest = max(cells, key=lambda cell: cell.flops)
    yield (
        f"{len(cells)} runs, {flops:.4g} FLOPs, {hours:.3g} hours on {machine.name} one after another; the largest, "
        f"{largest.name}, is {largest.flops / flops:.0%} of them"
    )
    if devices > 1 or price is not None:
        cost = "" if price is None else f", {price * hours * devices:,.0f} at {price:g} a device and hour"
        yield f"{hours * devices:,.3g} device hours{cost}"
    yield (
        f"{machine.name}: {machine.flops:.3g} FLOP/s at its peak ({machine.source}), utilisation "
        f"{machine.utilisation:.0%} where no step was measured"
    )
