"""The report of a study: a page that needs nothing else, and figures that show what they should."""

import html.parser
import io
import shutil
import subprocess

import numpy as np
import pytest
from PIL import Image

from lumina_jax.commands.scaling import main
from lumina_jax.scaling import figures, page
from lumina_jax.scaling.fitting import fit_runs
from lumina_jax.scaling.settings import FitSettings
from lumina_jax.scaling.table import TrainedRun
from tests.scaling.planted import CHINCHILLA, isoflop_grid, planted_runs, write_runs

QUICK = FitSettings(predict=(1e19,), hold_out="largest", noise="relative", bootstrap=100)
BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


def study_runs():
    """Two recipes with curves, and one that cannot be fitted."""
    random = np.random.default_rng(0)
    runs = planted_runs(CHINCHILLA, isoflop_grid(), random, 0.004, recipe="naive & <dit>")
    runs += planted_runs(CHINCHILLA, isoflop_grid(), random, 0.004, recipe="flag", saving=0.5)
    runs = [
        TrainedRun(**{**run.model_dump(), "curve": [(run.flops * x, run.loss / x**0.1) for x in (0.25, 0.5, 1.0)]})
        for run in runs
    ]
    return [*runs, TrainedRun(recipe="one", parameters=1e6, samples=1e9, flops=1e16, loss=3.0, seed=0)]


class Page(html.parser.HTMLParser):
    """The tags of a page, its text and its sources."""

    def __init__(self, text):
        super().__init__()
        self.opened, self.text, self.sources = [], "", []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        if tag not in ("meta", "img", "link"):
            self.opened.append(tag)
        self.sources += [value for name, value in attributes if name in ("src", "href", "data")]

    def handle_endtag(self, tag):
        assert self.opened.pop() == tag

    def handle_data(self, data):
        self.text += data


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    folder = tmp_path_factory.mktemp("report") / "study"
    assert page.write_report(study_runs(), QUICK, folder, "A <study>") == folder / "index.html"
    return folder


def test_the_page_is_whole_and_loads_nothing(report):
    text = (report / "index.html").read_text()
    seen = Page(text)
    assert seen.opened == []
    assert len(seen.sources) == 1 + 5 + 5 + 1
    assert all(source.startswith("data:image/png;base64,") for source in seen.sources)
    assert "http" not in text.replace("http-equiv", "")
    assert "@import" not in text
    assert "A <study>" in seen.text
    assert "naive & <dit>" in seen.text


@pytest.fixture(scope="module")
def found():
    return fit_runs([run for run in study_runs() if run.recipe == "flag"], QUICK)


def test_the_page_states_the_law_the_predictions_and_the_factor(report, found):
    text = Page((report / "index.html").read_text()).text
    for words in ("parameter", "90 % interval", "Compute-optimal models", "1e+19", "held out", "inside"):
        assert words in text
    assert f"{found.fit.law.a:.4g}" in text
    assert f"{found.predictions[0].loss:.4g}" in text
    assert "Compute of a recipe by that of naive & <dit>" in text


def test_a_recipe_that_cannot_be_fitted_says_why(report):
    text = Page((report / "index.html").read_text()).text
    assert "No law: A and a cannot be told" in text
    assert "one against naive & <dit>: a comparison needs at least 2 budgets" in text


def test_every_figure_is_a_png_that_is_not_blank(report):
    files = sorted(report.glob("*.png"))
    names = {file.name for file in files}
    assert {"recipes.png", "1-naive-dit-law.png", "2-flag-isoflops.png", "3-one-losses.png"} <= names
    assert len(files) == 12
    for file in files:
        pixels = np.asarray(Image.open(io.BytesIO(file.read_bytes())).convert("RGB"))
        assert pixels.shape[1] >= 1000
        assert np.mean(pixels.min(-1) < 200) > 0.003, file.name


def test_the_same_runs_give_the_same_figure(report, tmp_path):
    page.write_report(study_runs()[-1:], QUICK, tmp_path, "again")
    assert (tmp_path / "1-one-losses.png").read_bytes() == (report / "3-one-losses.png").read_bytes()


def test_figures_show_the_runs_the_minima_and_the_interval(found):
    (axes,) = figures.isoflop_figure(found).axes
    stars = [line for line in axes.lines if line.get_marker() == "*"]
    assert [line.get_xdata()[0] for line in stars] == [one.parameters for one in found.iso.budgets if not one.why_not]
    (axes,) = figures.law_figure(found).axes
    band, curve = axes.collections[0].get_paths()[0].vertices, axes.lines[0]
    inside = (band[:, 1].min() <= curve.get_ydata()) & (curve.get_ydata() <= band[:, 1].max())
    assert inside.all()
    assert curve.get_xdata()[-1] > 1e19
    residuals = figures.residuals_figure(found).axes[0]
    shown = [line.get_ydata()[0] for line in residuals.lines if line.get_marker() == "o"]
    np.testing.assert_allclose(shown, found.fit.residuals)


def test_the_command_predicts_ten_and_a_hundred_times_the_largest_budget(tmp_path, capsys, monkeypatch):
    asked = []
    monkeypatch.setattr(page, "write_report", lambda *words: asked.append(words) or words[2] / "index.html")
    runs = planted_runs(CHINCHILLA, isoflop_grid(), np.random.default_rng(0), 0.004)
    file = write_runs(tmp_path / "runs.jsonl", runs)
    assert main(["report", f"{file}", "--out", f"{tmp_path / 'out'}", "--seed", "7", "--title", "Ours"]) == 0
    assert capsys.readouterr().out.strip() == f"{tmp_path / 'out' / 'index.html'}"
    ((read, settings, _, title),) = asked
    largest = max(run.flops for run in runs)
    assert (len(read), settings.predict, settings.seed, title) == (40, (10 * largest, 100 * largest), 7, "Ours")


@pytest.mark.slow
@pytest.mark.skipif(BROWSER is None, reason="no Chromium is installed")
def test_a_browser_shows_and_prints_the_page(report, tmp_path):
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"]
    flags += [
        "--disable-background-networking",
        "--disable-component-update",
        f"--user-data-dir={tmp_path / 'profile'}",
    ]
    address = (report / "index.html").as_uri()

    def browser(*words):
        run = subprocess.run(
            [BROWSER, *flags, *words, address], capture_output=True, text=True, timeout=120, check=True
        )
        return run.stdout

    assert browser("--dump-dom").count("<figure>") == 12
    browser("--window-size=1280,2000", f"--screenshot={tmp_path / 'shot.png'}")
    pixels = np.asarray(Image.open(tmp_path / "shot.png").convert("L"))
    assert pixels.shape == (2000, 1280)
    assert 0.01 < np.mean(pixels < 128) < 0.5  # text and figures, on white
    assert np.mean(pixels[:, :20] > 250) > 0.95  # nothing reaches the margin
    browser(f"--print-to-pdf={tmp_path / 'page.pdf'}", "--no-pdf-header-footer")
    document = (tmp_path / "page.pdf").read_bytes()
    assert document.startswith(b"%PDF")
    assert len(document) > 100_000
