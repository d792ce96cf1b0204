"""Programs for several GPUs, lowered on a machine without one."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_training_steps_for_several_gpus_call_cudnn_on_each_and_make_no_array_of_all_pairs():
    command = [sys.executable, ROOT / "tests" / "parallel" / "cuda_programs.py"]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    found = json.loads(done.stdout.splitlines()[-1])
    calls = {name: (one["forward"], one["backward"]) for name, one in found.items()}
    assert calls["fsdp"] == calls["fsdp, tensor"] == (2, 2)  # of tokens, and of text
    assert calls["fsdp, heads exchanged"] == (4, 2)  # the backward pass computes each again
    assert calls["packed rows"] == (6, 2)  # and for packed rows once more
    assert calls["ring"] == (0, 0)
    # of eight rows of 4,096 tokens with 8 heads, all pairs would be a thousand million
    assert max(one["largest"] for one in found.values()) <= 2**26
