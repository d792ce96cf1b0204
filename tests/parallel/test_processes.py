"""Real processes that meet, agree, share work, and say what is wrong before any of it."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from lumina_jax.parallel.liveness import ENDED_BY_OTHERS
from tests.parallel.test_liveness import free_port

ROOT = Path(__file__).parents[2]
SHARING = """
import sys
import time
from pathlib import Path

import numpy as np

from lumina_jax.config import HostsConfig
from lumina_jax.encoders import caption_cache
from lumina_jax.parallel.multihost import check_agreement, gathered, is_shared, joined, say

class Lengths:
    fingerprint, width, max_tokens = "lengths", 2, 30

    def encode(self, captions):
        print("encodes", *captions, sep=",", flush=True)
        lengths = np.array([len(caption) for caption in captions])
        is_token = np.arange(30) < lengths[:, None]
        return np.where(is_token[:, :, None], lengths[:, None, None], 0) + np.zeros(2), is_token

def report(error):
    print("error:", error, flush=True)

caption_cache.CHUNK = 2
folder = Path(sys.argv[1])
with joined(HostsConfig(coordinator=sys.argv[2], start_timeout=60), report):
    import jax

    index = jax.process_index()
    assert gathered([index, "x" * 10 * index]) == [[0, ""], [1, "x" * 10]][: jax.process_count()]
    assert is_shared(folder)
    assert jax.process_count() == 1 or not is_shared(folder / str(index))
    features = caption_cache.encode_captions(["a" * n for n in range(9)], Lengths(), folder)
    assert all(features["a" * n].shape == (n, 2) and (features["a" * n] == n).all() for n in range(9))
    say("all is well")
    check_agreement({"index": index if "differ" in sys.argv else 0}, "be alike")
"""


def processes(commands, environment=lambda index: {}):
    """The outputs of the processes of these commands, and their exit statuses."""
    started = [
        subprocess.Popen(
            [sys.executable, *command],
            env=os.environ | {"PYTHONPATH": str(ROOT), "LUMINA_ALLOCATOR": "system"} | environment(index),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for index, command in enumerate(commands)
    ]
    said = [process.communicate(timeout=600)[0] for process in started]
    return said, [process.returncode for process in started]


def assert_failed(statuses):
    """The first to fail ends with 1; the others may fail of themselves, or hear of it before."""
    assert 1 in statuses
    assert set(statuses) <= {1, ENDED_BY_OTHERS}


def open_mpi(port):
    """The environment that a launcher gives to each of two processes."""
    return lambda index: {
        "OMPI_MCA_orte_hnp_uri": f"1531576320.0;tcp://127.0.0.1:{port}",
        "OMPI_COMM_WORLD_SIZE": "2",
        "OMPI_COMM_WORLD_RANK": str(index),
        "OMPI_COMM_WORLD_LOCAL_RANK": str(index),
        "JAX_COORDINATOR_PORT": str(port),
    }


@pytest.mark.slow
def test_two_processes_found_by_jax_share_the_captions_and_are_told_where_they_differ(tmp_path):
    command = ["-c", SHARING, str(tmp_path / "together"), "auto", "differ"]
    said, statuses = processes([command] * 2, open_mpi(free_port()))
    assert "all is well" in said[0], said
    assert "all is well" not in said[1]
    assert all("index is 0 in process 0 and 1 in process 1; be alike" in words for words in said), said
    assert_failed(statuses)
    together = [encoded_by(words) for words in said]
    assert all(together), "both have a part in it"
    assert sorted(together[0] + together[1]) == sorted("a" * n for n in range(9)), "each caption once"

    said, statuses = processes([["-c", SHARING, str(tmp_path / "alone"), ""]])
    assert statuses == [0], said
    assert sorted(encoded_by(said[0])) == sorted("a" * n for n in range(9))


def encoded_by(words):
    """The captions that a process says it has encoded."""
    return [caption for line in words.splitlines() if line.startswith("encodes,") for caption in line.split(",")[1:]]


WAITING = """
import sys
from lumina_jax.config import HostsConfig
from lumina_jax.parallel.multihost import gathered, joined

def report(error):
    print("error:", error, flush=True)

with joined(HostsConfig(coordinator=sys.argv[1], count=3, index=int(sys.argv[2]), start_timeout=300), report):
    while True:
        gathered(0)
        print("works", flush=True)
"""


@pytest.mark.slow
@pytest.mark.parametrize("victim", [0, 2])
def test_a_killed_process_ends_those_that_wait_for_it(victim):
    address = f"localhost:{free_port()}"
    started = [
        subprocess.Popen(
            [sys.executable, "-c", WAITING, address, str(index)],
            env=os.environ | {"PYTHONPATH": str(ROOT)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for index in range(3)
    ]
    for process in started:
        assert any("works" in line for line in process.stdout)
    started[victim].kill()
    killed = time.monotonic()
    others = [process for index, process in enumerate(started) if index != victim]
    said = [process.communicate(timeout=60)[0] for process in others]
    seconds = time.monotonic() - killed
    print(f"ended {seconds:.2f} s after process {victim} was killed")
    assert [process.returncode for process in others] == [ENDED_BY_OTHERS] * 2, said
    assert all(f"process {victim} of 3" in words and "is gone" in words for words in said), said
    assert seconds < 20


def training(port, tmp_path, *flags, count="2"):
    words = ["--hosts.coordinator", f"localhost:{port}", "--hosts.count", count, "--run.root", str(tmp_path), *flags]
    return [str(ROOT / "train.py"), str(ROOT / "configs" / "emoji.py"), *words]


@pytest.mark.slow
def test_a_missing_process_is_named_before_anything_is_read(tmp_path):
    command = training(free_port(), tmp_path, "--hosts.index", "1", "--hosts.start-timeout", "2")
    said, statuses = processes([command])
    assert "process 0 must answer at localhost" in said[0]
    assert statuses == [1]
    command = training(free_port(), tmp_path, "--hosts.index", "0", "--hosts.start-timeout", "2", count="3")
    said, statuses = processes([command])
    assert "processes 1, 2 did not come" in said[0]
    assert statuses == [1]
    assert not list(tmp_path.iterdir())


def test_processes_with_other_settings_are_refused(tmp_path):
    command, rates = training(free_port(), tmp_path), ["1e-3", "2e-3"]
    said, statuses = processes(
        [[*command, "--hosts.index", str(index), "--optimizer.learning-rate", rate] for index, rate in enumerate(rates)]
    )
    assert all("optimizer.learning_rate is 0.001 in process 0 and 0.002 in process 1" in words for words in said), said
    assert_failed(statuses)
    assert not list(tmp_path.iterdir())
