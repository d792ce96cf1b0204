"""Figures of a scaling study: losses, IsoFLOP parabolas, the law with its interval, sizes against compute, residuals.

In: runs and their fit. Out: matplotlib figures, without a display and without global state.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from lumina_jax.scaling.comparison import frontier
from lumina_jax.scaling.fitting import ScalingFit, best_model
from lumina_jax.scaling.table import TrainedRun, cells_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")
"""Okabe and Ito's colours, which readers without red or green tell apart."""
WIDTH, HEIGHT = 7.2, 4.2
POINTS = 25
NARROW = 8.0
"""An axis of losses that spans less than this factor has evenly spaced marks."""
BEYOND = 1.6
"""How far curves reach beyond the last point, as a factor of compute."""
LABELS = {"flops": "training compute C (FLOPs)", "parameters": "parameters N", "samples": "samples D"}


def losses_figure(runs: Sequence[TrainedRun]) -> "Figure":
    """Held-out losses over compute: curves during training where runs have them, and their ends."""
    figure, axes = _canvas()
    sizes = np.log([run.parameters for run in runs])
    for run in runs:
        colour = _colour(np.log(run.parameters), sizes)
        if run.curve:
            axes.plot(*np.array(run.curve).T, color=colour, linewidth=0.8, alpha=0.7)
        axes.plot(run.flops, run.loss, "o", color=colour, markersize=4)
    best = frontier(cells_of(runs))
    axes.plot(best.flops, best.values, color="black", linewidth=1, linestyle=":", label="frontier of final losses")
    axes.set(xlabel=LABELS["flops"], xscale="log")
    _loss_axis(axes)
    axes.legend(loc="lower left")
    _size_bar(figure, axes, sizes)
    return figure


def isoflop_figure(found: ScalingFit) -> "Figure":
    """Losses over sizes for each budget, parabolas with their minima, and the law."""
    figure, axes = _canvas()
    budgets = found.iso.budgets
    logs = np.log([one.flops for one in budgets])
    for one in budgets:
        colour = _colour(np.log(one.flops), logs)
        sizes = np.geomspace(one.cells.parameters.min(), one.cells.parameters.max(), 100)
        axes.plot(one.cells.parameters, one.cells.values, "o", color=colour, markersize=5)
        axes.plot(sizes, np.polyval(one.curve, np.log(sizes)), color=colour, linewidth=1)
        law = found.fit.law.loss(sizes, one.flops / found.cost.flops(sizes))
        axes.plot(sizes, law, color=colour, linewidth=1, linestyle=":")
        axes.annotate(f"{one.flops:.1e}", (sizes[-1], law[-1]), xytext=(5, 0), textcoords="offset points", fontsize=8)
        if not one.why_not:
            axes.plot(one.parameters, one.loss, "*", color=colour, markersize=13, markeredgecolor="black")
    axes.plot([], [], color="grey", label="parabola, with its minimum (star)")
    axes.plot([], [], color="grey", linestyle=":", label="fitted law")
    axes.set(xlabel=LABELS["parameters"], xscale="log")
    _loss_axis(axes)
    axes.margins(x=0.12)
    axes.legend(title="numbers: FLOPs of a budget")
    return figure


def law_figure(found: ScalingFit) -> "Figure":
    """The loss of compute-optimal models with its interval, the runs, those held out, and predictions."""
    figure, axes = _canvas()
    cells = found.fit.cells
    flops = _budgets(found)
    best = [best_model(found.fit, found.confidence, found.cost, one) for one in flops]
    curve = np.array([one.curve for one in best])
    axes.fill_between(flops, curve[:, 0], curve[:, 1], alpha=0.2, color=COLOURS[0], linewidth=0, label="90 % interval")
    axes.plot(flops, [one.loss for one in best], color=COLOURS[0], label="law, at the best N and D")
    axes.plot(cells.flops, cells.values, "o", color="grey", markersize=4, label="runs that were fitted")
    if found.fit.law.E > 0:
        axes.axhline(found.fit.law.E, color="black", linewidth=0.8, linestyle=":", label="floor E")
    for index, hidden in enumerate(found.held_out):
        label = "held out" if index == 0 else None
        axes.plot(hidden.prediction.flops, hidden.loss, "D", color=COLOURS[1], markersize=6, label=label)
    _with_bars(axes, found)
    axes.set(xlabel=LABELS["flops"], xscale="log")
    _loss_axis(axes)
    axes.legend()
    return figure


def sizes_figure(found: ScalingFit) -> "Figure":
    """Compute-optimal parameters and samples against compute, by the law and by parabolas."""
    figure, _ = _canvas(columns=2)
    flops = _budgets(found)
    best = [best_model(found.fit, found.confidence, found.cost, one) for one in flops]
    for axes, name in zip(figure.axes, ("parameters", "samples")):
        low, high = np.array([getattr(one, f"{name}_range") for one in best]).T
        axes.fill_between(flops, low, high, color=COLOURS[0], alpha=0.2, linewidth=0, label="90 % interval")
        axes.plot(flops, [getattr(one, name) for one in best], color=COLOURS[0], label="law")
        minima = [one for one in found.iso.budgets if not one.why_not]
        axes.plot(
            [one.flops for one in minima], [getattr(one, name) for one in minima], "*", color=COLOURS[1],
            markersize=10, label="parabolas",
        )  # fmt: skip
        power = getattr(found.iso, name)
        if power is not None:
            label = f"their power law, C^{power.exponent[0]:.3f}"
            axes.plot(
                flops, [power.at(one) for one in flops], color=COLOURS[1], linestyle="--", linewidth=1, label=label
            )
        axes.set(xlabel=LABELS["flops"], ylabel=f"best {LABELS[name]}", xscale="log", yscale="log")
        axes.legend()
    return figure


def residuals_figure(found: ScalingFit) -> "Figure":
    """Residuals in standard deviations against parameters and samples."""
    figure, first = _canvas(columns=2)
    logs = np.log(found.fit.cells.flops)
    for axes, name in zip(figure.axes, ("parameters", "samples")):
        values = getattr(found.fit.cells, name)
        axes.axhspan(-2, 2, color="grey", alpha=0.12, linewidth=0)
        axes.axhline(0, color="black", linewidth=0.8)
        for x, y, log in zip(values, found.fit.residuals, logs):
            axes.plot(x, y, "o", color=_colour(log, logs), markersize=5)
        axes.set(xlabel=LABELS[name], xscale="log")
    first.set_ylabel("loss less law (standard deviations)")
    return figure


def recipes_figure(runs: Mapping[str, Sequence[TrainedRun]]) -> "Figure":
    """The frontiers of all recipes."""
    figure, axes = _canvas()
    for index, (recipe, of_recipe) in enumerate(runs.items()):
        cells, colour = cells_of(of_recipe), COLOURS[index % len(COLOURS)]
        best, style = frontier(cells), ("-", "--", ":")[index // len(COLOURS) % 3]
        axes.plot(cells.flops, cells.values, "o", color=colour, markersize=3, alpha=0.35)
        axes.plot(best.flops, best.values, "o", linestyle=style, color=colour, markersize=6, label=recipe)
    axes.set(xlabel=LABELS["flops"], xscale="log")
    _loss_axis(axes)
    axes.legend(title="frontiers")
    return figure


def _canvas(columns: int = 1) -> "tuple[Figure, Axes]":
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(WIDTH, HEIGHT), layout="constrained")
    FigureCanvasAgg(figure)
    for column in range(columns):
        axes = figure.add_subplot(1, columns, column + 1)
        axes.grid(which="major", alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    return figure, figure.axes[0]


def _loss_axis(axes: "Axes") -> None:
    """A logarithmic axis of losses, with plain numbers however narrow its range is."""
    from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

    axes.set(ylabel="held-out loss", yscale="log")
    low, high = axes.get_ylim()
    axes.yaxis.set_major_locator(MaxNLocator(8) if high < NARROW * low else LogLocator(subs=(1.0, 2.0, 5.0)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.4g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())


def _colour(value: float, values: Any) -> Any:
    """The colour of a value among others, from dark (least) to bright."""
    from matplotlib import colormaps

    low, high = np.min(values), np.max(values)
    return colormaps["viridis"](0.9 * (value - low) / (high - low) if high > low else 0.4)


def _size_bar(figure: "Figure", axes: "Axes", sizes: Any) -> None:
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import LinearSegmentedColormap, LogNorm

    low, high = np.exp(np.min(sizes)), np.exp(np.max(sizes))
    if high > low:
        colours = LinearSegmentedColormap.from_list("sizes", [_colour(one, [0, 1]) for one in np.linspace(0, 1, 64)])
        figure.colorbar(ScalarMappable(LogNorm(low, high), colours), ax=axes, label=LABELS["parameters"])


def _budgets(found: ScalingFit) -> Any:
    """Budgets from the least of the runs to beyond the last prediction."""
    every = [*found.fit.cells.flops, *(one.flops for one in found.predictions)]
    every += [one.prediction.flops for one in found.held_out]
    return np.geomspace(min(every), BEYOND * max(every), POINTS)


def _with_bars(axes: "Axes", found: ScalingFit) -> None:
    """Predictions, and where one run would lie."""
    for index, one in enumerate(found.predictions):
        axes.errorbar(
            one.flops, one.loss, [[one.loss - one.low], [one.high - one.loss]], fmt="s", color=COLOURS[2], capsize=3,
            markersize=5, label="predicted runs" if index == 0 else None,
        )  # fmt: skip
