"""What the compiled sampler of the 600M model sends between chips: the weights of each layer for each network call.

python -m pytest -m aot -n 0 -s tests/aot/test_sampler_traffic.py     (needs the extra 'aot'; half a minute)
"""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
LAYERS, CHIPS, STEPS = 16, 16, 10
PARAMETERS = LAYERS * (4 * 1536**2 + 3 * 1536 * 4096 + 1024 * 6 * 1536)
"""Of the layers' matrices: attention, feed-forward, adaLN."""
OTHERS = 6_000_000
"""At most so many outside the layers: the table of labels, embeddings, the final layer."""


@pytest.mark.aot
def test_each_network_call_gathers_the_weights_once_in_bfloat16_and_sends_no_activations(tmp_path):
    file = tmp_path / "found.json"
    command = [sys.executable, "-m", "lumina_jax", "aot", "configs/imagenet_600m.py", "--topology", "v5e:4x4"]
    command += ["--mesh.fsdp", str(CHIPS), "--sampler", "--quick", "--json", str(file)]
    command += ["--sample.solver", "euler", "--sample.steps", str(STEPS)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    print("\n".join(line for line in done.stdout.splitlines() if " of bf16 " in line or "GB" in line))
    report = json.loads(file.read_text())

    ideal = STEPS * 2 * PARAMETERS * (CHIPS - 1) / CHIPS
    sent = {}
    for one in report["collectives"]:
        kind = one["kind"], one["dtype"]
        sent[kind] = sent.get(kind, 0) + one["sent_bytes"]
    # one layer ahead: after the last layer its weights are gathered once more
    assert 0.99 * ideal < sent[("all-gather", "bf16")] < 1.02 * ideal * (LAYERS + 1) / LAYERS
    assert sum(sent.values()) - sent[("all-gather", "bf16")] < 0.01 * ideal

    memory = report["memory"]
    assert 4 * PARAMETERS / CHIPS < memory["parameters"] < 4 * (PARAMETERS / CHIPS + OTHERS)
    assert memory["activations"] == memory["gradients"] == memory["average"] == memory["moments"] == 0
    assert memory["temporaries"] < 2 * PARAMETERS  # less than the weights of all layers
