"""The report of a scaling study: one HTML page that holds its figures, and the same figures as PNG files.

In: runs of one or more recipes. Out: a folder with index.html, which loads nothing from anywhere, and PNGs. A recipe
whose runs cannot tell a law is shown with the reason.
"""

import base64
import html
import io
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from lumina_jax.parts import prepare_folder, write_file
from lumina_jax.scaling import figures
from lumina_jax.scaling.comparison import compare
from lumina_jax.scaling.fitting import ScalingFit, fit_runs, untold
from lumina_jax.scaling.settings import FitSettings
from lumina_jax.scaling.table import TrainedRun

if TYPE_CHECKING:
    from matplotlib.figure import Figure

DOTS_PER_INCH = 160
PAGE = "index.html"
STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; color: #1a1a1a; background: #fff; max-width: 60rem; margin: 2rem auto;
  padding: 0 1rem; }
h1 { font-size: 1.7rem; } h2 { font-size: 1.35rem; margin-top: 2.5rem; border-bottom: 2px solid #ddd; }
h3 { font-size: 1.05rem; margin-bottom: 0.3rem; }
table { border-collapse: collapse; margin: 0.7rem 0; font-variant-numeric: tabular-nums; }
th, td { padding: 0.2rem 0.8rem; border-bottom: 1px solid #ddd; text-align: right; }
th:first-child, td:first-child { text-align: left; } td { white-space: nowrap; } thead th { border-bottom: 2px solid #888; }
figure { margin: 1rem 0; } img { max-width: 100%; height: auto; } figcaption { font-size: 0.9rem; color: #444; }
.note { border-left: 4px solid #d55e00; padding: 0.1rem 0.8rem; margin: 0.5rem 0; background: #fdf3ec; }
.scroll { overflow-x: auto; }
@media print {
  @page { size: A4; margin: 15mm; }
  body { font-size: 10.5pt; max-width: none; margin: 0; padding: 0; }
  h2 { break-before: page; } h2.first { break-before: auto; } h2, h3 { break-after: avoid; }
  table { font-size: 9pt; } th, td { padding: 0.15rem 0.5rem; }
  figure, table, .note { break-inside: avoid; } img { max-height: 95mm; } .scroll { overflow: visible; }
}
"""


def write_report(runs: Sequence[TrainedRun], settings: FitSettings, folder: Path, title: str) -> Path:
    """Write the report; the path of its page.

    Raises:
      UnwritableError: the folder cannot be written to.
    """
    prepare_folder(folder)
    recipes: dict[str, list[TrainedRun]] = {}
    for run in runs:
        recipes.setdefault(run.recipe, []).append(run)
    parts = [f"<h1>{html.escape(title)}</h1>", f"<p>{_counted(recipes)}</p>"]
    if len(recipes) > 1:
        parts += _recipes(recipes, settings, folder)
    for index, (recipe, of_recipe) in enumerate(recipes.items()):
        first = ' class="first"' if len(recipes) == 1 else ""
        parts.append(f"<h2{first}>{html.escape(recipe)}</h2>")
        parts += _recipe(of_recipe, settings, folder, f"{index + 1}-{_file_name(recipe)}")
    body = "\n".join(parts)
    page = (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{html.escape(title)}</title>\n'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">\n<style>{STYLE}</style></head>\n'
        f"<body>\n{body}\n</body></html>\n"
    )
    write_file(folder, PAGE, page.encode())
    return folder / PAGE


def _recipes(recipes: dict[str, list[TrainedRun]], settings: FitSettings, folder: Path) -> Iterator[str]:
    """All recipes beside each other, each compared with the first."""
    yield '<h2 class="first">Recipes</h2>'
    caption = "Final losses of all recipes. The lines join the cells that no cheaper cell beats."
    yield _figure(figures.recipes_figure(recipes), folder, "recipes", caption)
    (against, first), *others = recipes.items()
    rows, reasons = [], []
    for recipe, runs in others:
        try:
            found = compare(runs, first, draws=settings.bootstrap, seed=settings.seed)
        except ValueError as error:
            reasons.append(f'<p class="note">{html.escape(f"{recipe} against {against}: {error}")}</p>')
            continue
        value, low, high = found.factor
        rows.append((recipe, f"{value:.3g}", f"{low:.3g} to {high:.3g}", "{:.4g} to {:.4g}".format(*found.losses)))
    if rows:
        yield f"<h3>Compute of a recipe by that of {html.escape(against)}, for the same loss</h3>"
        yield _table(("recipe", "factor", "90 % interval", "losses that both cover"), rows)
    yield from reasons


def _recipe(runs: Sequence[TrainedRun], settings: FitSettings, folder: Path, name: str) -> Iterator[str]:
    caption = "Held-out loss over training compute. Dots end a run; lines are losses during training."
    yield _figure(figures.losses_figure(runs), folder, f"{name}-losses", caption)
    try:
        found = fit_runs(runs, settings)
        extra = [*_fit(found), *_fit_figures(found, folder, name)]
    except ValueError as error:
        yield f'<p class="note">No law: {html.escape(str(error))}.</p>'
        return
    yield from extra


def _fit(found: ScalingFit) -> Iterator[str]:
    """Tables of the parameters, the predictions and the runs held out."""
    law, unknown = found.fit.law, untold(found.confidence)
    yield "<h3>The law L = E + A N<sup>-a</sup> + B D<sup>-b</sup></h3>"
    yield _table(
        ("parameter", "value", "90 % interval", ""),
        [
            (name, f"{getattr(law, name):.4g}", f"{low:.4g} to {high:.4g}", "cannot be told" if name in unknown else "")
            for name, (low, high) in found.confidence.joint.intervals().items()
        ],
    )
    share = "of its loss" if found.fit.noise == "relative" else "of the mean loss"
    yield f"<p>Noise of a run: {found.fit.scale:.2%} {share}. The intervals of the five parameters hold together.</p>"
    if found.predictions:
        yield "<h3>Compute-optimal models</h3>"
        yield _table(
            ("FLOPs", "parameters", "90 % interval", "samples", "loss", "90 % interval of a run"),
            [
                (
                    f"{one.flops:.3g}", f"{one.parameters:.3g}", "{:.3g} to {:.3g}".format(*one.parameters_range),
                    f"{one.samples:.3g}", f"{one.loss:.4g}", f"{one.low:.4g} to {one.high:.4g}",
                )
                for one in found.predictions
            ],
        )  # fmt: skip
    if found.held_out:
        yield "<h3>Runs that were held out</h3>"
        yield _table(
            ("FLOPs", "parameters", "predicted", "90 % interval", "observed", "error", ""),
            [
                (
                    f"{one.prediction.flops:.3g}", f"{one.prediction.parameters:.3g}", f"{one.prediction.loss:.4g}",
                    f"{one.prediction.low:.4g} to {one.prediction.high:.4g}", f"{one.loss:.4g}", f"{one.error:+.2%}",
                    "inside" if one.is_inside else "outside",
                )
                for one in found.held_out
            ],
        )  # fmt: skip
    powers = [(sign, getattr(found.iso, key)) for sign, key in (("N", "parameters"), ("D", "samples"), ("L", "loss"))]
    if powers[0][1] is not None:
        yield "<h3>Power laws through the minima of IsoFLOP parabolas</h3>"
        yield _table(
            ("", "coefficient", "exponent of C", "90 % interval"),
            [
                (
                    sign, f"{power.coefficient[0]:.4g}", f"{power.exponent[0]:.4f}",
                    "{:.4f} to {:.4f}".format(*power.exponent[1:]),
                )
                for sign, power in powers
            ],
        )  # fmt: skip
    without = [f"no parabola at {one.flops:.3g} FLOPs: {one.why_not}" for one in found.iso.budgets if one.why_not]
    yield from (f'<p class="note">{html.escape(note)}</p>' for note in [*without, *found.notes])


def _fit_figures(found: ScalingFit, folder: Path, name: str) -> Iterator[str]:
    caption = "Held-out loss of the best model for each budget, and the range of laws that fit the runs about as well."
    yield _figure(figures.law_figure(found), folder, f"{name}-law", caption)
    if found.iso.budgets:
        caption = "Runs of equal compute: the size that a budget is best spent on."
        yield _figure(figures.isoflop_figure(found), folder, f"{name}-isoflops", caption)
    caption = "How many parameters and samples a budget is best spent on."
    yield _figure(figures.sizes_figure(found), folder, f"{name}-sizes", caption)
    caption = "What the law misses, in standard deviations; colours from dark to bright by compute. Trends are misfit."
    yield _figure(figures.residuals_figure(found), folder, f"{name}-residuals", caption)


def _figure(figure: "Figure", folder: Path, name: str, caption: str) -> str:
    """A figure in the page, which is also written as a PNG."""
    buffer = io.BytesIO()
    figure.savefig(buffer, dpi=DOTS_PER_INCH, metadata={"Software": None})
    write_file(folder, f"{name}.png", buffer.getvalue())
    source = base64.b64encode(buffer.getvalue()).decode()
    caption = html.escape(caption)
    return (
        f'<figure><img alt="{caption}" src="data:image/png;base64,{source}"><figcaption>{caption}</figcaption></figure>'
    )


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    head = "".join(f"<th>{html.escape(one)}</th>" for one in heads)
    body = "".join("<tr>" + "".join(f"<td>{html.escape(one)}</td>" for one in row) + "</tr>" for row in rows)
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def _counted(recipes: dict[str, list[TrainedRun]]) -> str:
    runs = sum(map(len, recipes.values()))
    return f"{runs} runs of {len(recipes)} recipes: {html.escape(', '.join(recipes))}."


def _file_name(recipe: str) -> str:
    return re.sub(r"[^A-Za-z0-9._-]+", "-", recipe).strip(".-")[:60] or "recipe"
