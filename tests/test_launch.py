"""What is settled before jax is imported."""

import glob
import importlib.util

import pytest

from lumina_jax import launch


@pytest.mark.parametrize(
    ("files", "plugin", "platforms", "on_cpu"),
    [
        (["/dev/nvidia0"], "jax_cuda13_plugin", "", False),
        (["/dev/dxg"], "jax_cuda12_plugin", "", False),
        (["/dev/nvidia0"], None, "", True),  # jax cannot use the GPU without a plugin
        (["/dev/nvidia0"], "jax_cuda12_plugin", "cpu", True),
        (["/dev/vfio/0"], None, "", False),
        ([], "jax_cuda12_plugin", "", True),
    ],
)
def test_a_program_runs_on_gpus_where_there_is_one_and_jax_can_use_it(monkeypatch, files, plugin, platforms, on_cpu):
    monkeypatch.setenv("JAX_PLATFORMS", platforms)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name == plugin or None)
    monkeypatch.setattr(glob, "glob", lambda pattern: [file for file in files if file[:8] == pattern[:8]])
    assert launch.runs_on_cpu() is on_cpu
