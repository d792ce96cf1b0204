"""Adapters on several devices."""

import json
import os
import subprocess
import sys

import pytest

from tests.training.processes import ROOT


@pytest.mark.slow
@pytest.mark.parametrize("base", ["float32", "int8", "nf4"])
def test_adapters_train_on_a_mesh_as_on_one_device_and_draw_where_devices_divide_heads(base):
    words = [sys.executable, "-m", "tests.parallel.adapters_on_devices", base]
    done = subprocess.run(words, cwd=ROOT, env=os.environ, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["base"] == 0
    assert found["words"] == 0
    assert found["trained"] < 1e-5
    assert found["drawn"] < 1e-5
