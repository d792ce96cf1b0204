"""What shows a run besides its folder."""

import json
import subprocess
import sys
import types

import numpy as np
import pytest

from lumina_jax.config import Config
from lumina_jax.config_files import load_config
from lumina_jax.training.jsonl import Jsonl
from lumina_jax.training.metrics import MetricWriter
from lumina_jax.training.trackers import TensorBoard, Tracker, check_trackers, new_trackers


class Recorder:
    """What the package wandb is asked to do."""

    def __init__(self):
        self.calls, self.fails = [], False
        self.Image = lambda pixels: pixels.shape
        self.finish = lambda: self.calls.append("finish")

    def init(self, **arguments):
        self.calls.append(arguments)
        return self

    def define_metric(self, name, step_metric):
        self.calls.append((name, step_metric))

    def log(self, values):
        if self.fails:
            raise OSError("no network")
        self.calls.append(values)


@pytest.fixture
def wandb(monkeypatch):
    recorder = Recorder()
    module = types.ModuleType("wandb")
    module.init, module.Image = recorder.init, recorder.Image
    monkeypatch.setitem(sys.modules, "wandb", module)
    return recorder


def config_of(*trackers):
    return load_config("emoji").replace(run={"name": "mine", "trackers": trackers})


def test_weights_and_biases_gets_finite_metrics_and_pictures_of_a_run_that_continues(wandb, tmp_path):
    config = config_of("wandb")
    for _ in range(2):
        writer = MetricWriter(new_trackers(config, tmp_path, 0))
        writer.write(3, {"loss": 0.5, "gradient_norm": float("nan")})
        writer.image(3, "sheet", np.zeros((2, 4, 3), np.uint8))
        writer.close()
    first, second = (call for call in wandb.calls if isinstance(call, dict) and "project" in call)
    assert first == second, "the same run there goes on"
    assert (first["project"], first["name"], first["resume"]) == ("lumina_jax", "mine", "allow")
    assert first["config"]["optimizer"]["learning_rate"] == config.optimizer.learning_rate
    assert wandb.calls[1:5] == [("*", "step"), {"step": 3, "loss": 0.5}, {"step": 3, "sheet": (2, 4, 3)}, "finish"]


def test_a_tracker_that_fails_says_so_once_and_stops_nothing(wandb, tmp_path, capsys):
    writer = MetricWriter(new_trackers(config_of("wandb"), tmp_path, 0))
    wandb.fails = True
    for step in (1, 2):
        writer.write(step, {"loss": 1.0})
    writer.close()
    warning = "warning: Weights & Biases got no metrics (no network); training continues\n"
    assert capsys.readouterr().err == warning
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 2


def test_a_run_has_the_trackers_that_it_names(tmp_path):
    def kinds(config):
        trackers = new_trackers(config, tmp_path, 0)
        assert all(isinstance(tracker, Tracker) for tracker in trackers)
        return [type(tracker) for tracker in trackers]

    assert kinds(config_of("tensorboard", "tensorboard")) == [Jsonl, TensorBoard]
    assert kinds(config_of()) == [Jsonl]
    assert kinds(config_of().replace(run={"jsonl": False})) == []
    assert kinds(config_of("tensorboard").replace(run={"jsonl": False})) == [TensorBoard]


@pytest.mark.parametrize("trackers", [("tensorboard",), ()])
def test_a_configuration_of_before_run_jsonl_writes_it(trackers):
    saved = json.loads(config_of(*trackers).to_json())
    del saved["run"]["jsonl"]
    assert Config.from_json(json.dumps(saved)).run.jsonl


def test_a_tracker_without_its_package_is_refused_before_training(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"pip install 'lumina_jax\[wandb\]'"):
        check_trackers(config_of("wandb"))
    check_trackers(config_of("tensorboard"))


@pytest.mark.slow
def test_the_package_of_weights_and_biases_keeps_a_run_offline(tmp_path):
    pytest.importorskip("wandb")
    program = (
        "import pathlib, sys, lumina_jax as lumina\n"
        "from lumina_jax.training.trackers import new_trackers\n"
        "folder = pathlib.Path(sys.argv[1])\n"
        "config = lumina.load_config('emoji').replace(run={'trackers': ('wandb',)})\n"
        "_, tracker = new_trackers(config, folder, 0)\n"
        "tracker.write(1, {'loss': 0.25})\n"
        "summary = dict(tracker._run.summary)\n"
        "tracker.close()\n"
        "print('summary', __import__('json').dumps({k: summary[k] for k in ('step', 'loss')}))\n"
    )
    command = [sys.executable, "-c", program, str(tmp_path)]
    environment = {"WANDB_MODE": "offline", "WANDB_SILENT": "true", "HOME": str(tmp_path), "JAX_PLATFORMS": "cpu"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    (line,) = [line for line in done.stdout.splitlines() if line.startswith("summary")]
    assert json.loads(line.removeprefix("summary")) == {"step": 1, "loss": 0.25}
    assert list(tmp_path.glob("wandb/offline-run-*/*.wandb"))
