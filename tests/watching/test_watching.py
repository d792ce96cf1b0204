"""The page that shows runs while they train."""

import base64
import html
import json
import re
import shutil
import subprocess
import threading
import urllib.error
import urllib.request

import numpy as np
import pytest
from PIL import Image

from lumina_jax.commands.watch import Arguments, opened
from lumina_jax.config_files import load_config
from lumina_jax.page_access import PageFlags
from lumina_jax.training.jsonl import Jsonl
from lumina_jax.watching.runs import MOST_POINTS, WatchedRun
from lumina_jax.watching.server import WatchServer

BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


def new_run(folder, *, rate=0.001):
    """A run of 40 steps that has drawn two sheets; its names are HTML."""
    writer = Jsonl(folder, resumed_step=0)
    for step in range(10, 41, 10):
        writer.write(step, {"loss": 10 / step, "samples": 4, "bad_samples": 0, "learning_rate": rate})
    writer.write(40, {"held_out_loss": 0.5})
    writer.close()
    settings = {"run": {"name": folder.name, "steps": 50}, "optimizer": {"learning_rate": rate}, "note": "<b>&"}
    (folder / "config.json").write_text(json.dumps(settings))
    (folder / "samples").mkdir()
    for step in (20, 40):
        Image.new("RGB", (8, 8), (step, 0, 0)).save(folder / "samples" / f"step_{step:07}.png")
    return folder


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    root = tmp_path_factory.mktemp("runs")
    return [str(new_run(root / "one")), str(new_run(root / "two & <i>", rate=0.002))]


@pytest.fixture
def served(runs):
    """A function that starts a server of the two runs; its address."""
    servers = []

    def start(**flags):
        server = opened(Arguments(runs=tuple(runs), page=PageFlags(port=0, **flags)))
        threading.Thread(target=server.serve_forever, daemon=True).start()
        servers.append(server)
        return f"http://127.0.0.1:{server.server_port}"

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


def answer(address, **headers):
    """The status and the content of an answer."""
    try:
        given = {name.replace("_", "-"): text for name, text in headers.items()}
        with urllib.request.urlopen(urllib.request.Request(address, headers=given)) as opened_page:
            return opened_page.status, opened_page.read()
    except urllib.error.HTTPError as error:
        return error.code, error.read()


def steps_of(run, metric="loss"):
    run.read_metrics()
    return run.curves().get(metric, {"steps": []})["steps"]


def test_a_run_is_followed_while_it_trains_and_after_it_resumed(tmp_path):
    writer = Jsonl(tmp_path, resumed_step=0)
    writer.write(1, {"loss": 3.0, "samples": 8})
    run = WatchedRun(str(tmp_path))
    assert steps_of(run) == [1]
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 2, "loss": 2.0')
        file.flush()
        assert steps_of(run) == [1], "half a line waits for its other half"
        file.write(', "samples": 8}\n')
    assert steps_of(run) == [1, 2]
    assert steps_of(run) == [1, 2], "nothing is new"
    writer.close()
    resumed = Jsonl(tmp_path, resumed_step=1)
    resumed.write(2, {"loss": float("nan"), "samples": 8})
    resumed.write(5, {"loss": 1.0, "samples": 4})
    resumed.close()
    run.read_metrics()
    assert run.curves()["loss"] == {"steps": [1, 2, 5], "seen": [8, 16, 28], "values": [3.0, None, 1.0], "every": 1}
    assert run.problems == []


def test_a_line_that_cannot_be_read_is_left_out_and_said(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "loss": 2}\nno json\n{"loss": 2}\n{"step": 4, "loss": 1}\n')
    run = WatchedRun(str(tmp_path))
    assert steps_of(run) == [1, 4]
    assert "line 2 of metrics.jsonl" in run.problems[0]
    assert run.problems[1] == "line 3 of metrics.jsonl has no step"


DAMAGED = {
    "infinite": '{"step": 1e999}',
    "no number": '{"step": NaN, "loss": 1}',
    "half": '{"step": 3.5}',
    "negative": '{"step": -5}',
    "long": '{"step": 1e17}',
    "deep": "[" * 10_000,
    "zeros": "\0" * 50,
    "two in one": '{"step": 3}{"step": 4}',
    "empty": "",
}


@pytest.mark.parametrize("line", DAMAGED.values(), ids=DAMAGED)
def test_a_damaged_line_costs_no_other_line(tmp_path, line):
    last = '{"step": 9, "loss": 1, "samples": 4}'
    (tmp_path / "metrics.jsonl").write_text(f'{{"step": 1, "loss": 2, "samples": 4}}\n{line}\n{last}\n')
    server = WatchServer([WatchedRun(str(tmp_path))], PageFlags(port=0).access(), 0)
    server.server_close()
    [run] = json.loads(server.state())["runs"]
    assert (run["curves"]["loss"]["steps"], run["curves"]["loss"]["seen"]) == ([1, 9], [4, 36])
    [problem] = run["problems"]
    assert problem.startswith("line 2 of metrics.jsonl")
    assert len(problem) < 200


def test_numbers_that_are_too_large_leave_the_page_readable(tmp_path):
    lines = ['{"step": 1, "samples": 4}', '{"step": 9, "samples": 1e308, "loss": 1e999}', '{"step": 10, "samples": -4}']
    (tmp_path / "metrics.jsonl").write_text("\n".join([*lines, '{"step": 3, "samples": 4}']) + "\n")
    run = WatchedRun(str(tmp_path))
    run.read_metrics()
    assert run.curves()["samples"]["seen"] == [4, 4, 4, 4], "what was seen never becomes less or infinite"
    assert run.curves()["loss"]["values"] == [None]


def test_of_many_damaged_lines_the_first_are_said(tmp_path):
    (tmp_path / "metrics.jsonl").write_text("x\n" * 100)
    run = WatchedRun(str(tmp_path))
    run.read_metrics()
    assert len(run.problems) == 4
    assert run.problems[-1] == "97 more lines of metrics.jsonl cannot be read"


def test_a_long_curve_is_drawn_by_means(tmp_path):
    count = 2 * MOST_POINTS + 6
    lines = [json.dumps({"step": step, "loss": float(step)}) for step in range(1, count + 1)]
    (tmp_path / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    run = WatchedRun(str(tmp_path))
    run.read_metrics()
    curve = run.curves()["loss"]
    assert curve["every"] == 3
    assert curve["steps"][:2] == [3, 6]
    np.testing.assert_array_equal(curve["values"], np.arange(2, count, 3)[: len(curve["values"])])


def test_sheets_are_in_the_order_of_their_steps_and_old_names_of_metrics_are_read(tmp_path):
    new_run(tmp_path / "run")
    with (tmp_path / "run" / "metrics.jsonl").open("a") as file:
        file.write('{"step": 50, "images_per_second": 7}\n')
    (tmp_path / "run" / "samples" / "step_1.png").write_bytes(b"")
    (tmp_path / "run" / "samples" / "step_x.png").write_bytes(b"")
    run = WatchedRun(str(tmp_path / "run"))
    assert steps_of(run, "samples_per_second") == [50]
    run.read_sheets()
    assert [sheet.step for sheet in run.sheets] == [1, 20, 40]


def test_a_browser_that_has_the_newest_state_is_told_so(served):
    address = f"{served()}/state"
    with urllib.request.urlopen(address) as page:
        version = page.headers["ETag"]
    assert answer(address, If_None_Match=version) == (304, b"")
    assert answer(address, If_None_Match='"other"')[0] == 200


def test_only_sheets_that_a_run_lists_are_served(served, runs):
    address = served()
    status, content = answer(f"{address}/sheet/1/step_0000040.png")
    assert status == 200
    assert content[:4] == b"\x89PNG"
    for path in ("sheet/1/step_0000041.png", "sheet/1/..%2Fconfig.json", "sheet/2/step_0000040.png", "config.json"):
        assert answer(f"{address}/{path}")[0] == 404, path
    assert answer(f"{address}/sheet/-1/step_0000040.png")[0] == 404


def test_the_page_is_for_this_computer_alone_or_behind_a_password(served, runs):
    with pytest.raises(ValueError, match="shows the page to other computers, which needs a password"):
        opened(Arguments(runs=tuple(runs), page=PageFlags(host="0.0.0.0", port=0)))
    address = served()
    assert answer(f"{address}/state")[0] == 200
    assert answer(f"{address}/state", Host="elsewhere.example")[0] == 403, "a page from elsewhere asked in its name"
    address = served(password="open sésame")
    assert answer(f"{address}/state")[0] == 401
    wrong, right = (base64.b64encode(f"me:{word}".encode()).decode() for word in ("open", "open sésame"))
    assert answer(f"{address}/state", Authorization=f"Basic {wrong}")[0] == 401
    assert answer(f"{address}/state", Authorization=f"Basic {right}")[0] == 200


@pytest.mark.parametrize(
    ("runs", "message"),
    [((), "watch needs at least one run"), (("nowhere",), "nowhere is not the folder of a run: it has neither")],
)
def test_what_is_no_run_is_refused(runs, message):
    with pytest.raises(ValueError, match=message):
        opened(Arguments(runs=runs, page=PageFlags(port=0)))


def test_the_page_answers_at_an_address_of_ipv6(runs):
    server = opened(Arguments(runs=tuple(runs), page=PageFlags(host="::1", port=0)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    assert answer(f"{server.address}/state")[0] == 200
    server.shutdown()
    server.server_close()


def test_a_damaged_configuration_is_said_and_the_other_run_is_shown(served, runs, tmp_path):
    (tmp_path / "config.json").write_text("{")
    (tmp_path / "metrics.jsonl").write_text('{"step": 3, "loss": 1}\n')
    server = opened(Arguments(runs=(str(tmp_path), runs[0]), page=PageFlags(port=0)))
    first, second = json.loads(server.state())["runs"]
    server.server_close()
    assert "config.json" in first["problems"][0]
    assert first["curves"]["loss"]["steps"] == [3], "what can be read is shown"
    assert second["curves"]["loss"]["steps"] == [10, 20, 30, 40]


def test_a_run_without_metrics_jsonl_is_shown_with_the_reason_for_the_missing_curves(tmp_path):
    for name, jsonl in (("without", False), ("early", True)):
        config = load_config("emoji").replace(run={"jsonl": jsonl, "steps": 50})
        (tmp_path / name / "samples").mkdir(parents=True)
        (tmp_path / name / "config.json").write_text(config.to_json())
        (tmp_path / name / "samples" / "step_7.png").write_bytes(b"")
    runs = [WatchedRun(str(tmp_path / name)) for name in ("without", "early")]
    server = WatchServer(runs, PageFlags(port=0).access(), 0)
    server.server_close()
    without, early = json.loads(server.state())["runs"]
    assert without["problems"] == ["run.jsonl is off: this run writes no metrics.jsonl, from which the curves are read"]
    assert early["problems"] == [], "its first metrics may come"
    assert [sheet["step"] for sheet in without["sheets"]] == [7]
    assert (without["steps"], without["settings"]["run.jsonl"]) == (50, "False")


def test_a_file_here_that_cannot_be_read_is_said_without_words_on_networks(tmp_path):
    (tmp_path / "metrics.jsonl").mkdir()
    server = WatchServer([WatchedRun(str(tmp_path))], PageFlags(port=0).access(), 0)
    server.server_close()
    [run] = json.loads(server.state())["runs"]
    assert run["problems"] == [f"[Errno 21] Is a directory: '{tmp_path}/metrics.jsonl'"]


def test_runs_of_the_same_name_are_told_apart_by_their_folders(tmp_path):
    folders = [new_run(tmp_path / name / "emoji") for name in ("first", "second")]
    server = opened(Arguments(runs=tuple(map(str, folders)), page=PageFlags(port=0)))
    server.server_close()
    assert [run["name"] for run in json.loads(server.state())["runs"]] == [str(folder) for folder in folders]


@pytest.mark.skipif(BROWSER is None, reason="needs a browser")
def test_a_browser_shows_curves_sheets_and_the_settings_that_differ(served):
    command = [BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--virtual-time-budget=5000", "--dump-dom"]
    shown = subprocess.run([*command, served()], capture_output=True, text=True, check=True, timeout=120).stdout
    rows = [re.sub(r"<[^>]*>", " ", row).split() for row in re.findall(r"<tr>(.*?)</tr>", shown)]
    assert ["one", "40", "0.25", "0.5", "0"] in rows
    assert ["optimizer.learning_rate", "0.001", "0.002"] in rows
    assert not any("run.steps" in row for row in rows), "settings that are the same are not shown"
    assert "two &amp; &lt;i&gt;" in shown, "names are text, never HTML"
    assert ">two &amp; &lt;i&gt;: loss</text>" in shown, "in the legend of Plotly, too"
    assert "<h3>two &amp; &lt;i&gt;, step 40</h3>" in shown
    assert '<img src="/sheet/1/step_0000040.png"' in shown
    assert "one: held out loss" in html.unescape(shown), "Plotly drew the legend"
