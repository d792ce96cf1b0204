"""A disk that takes no more stops no training, and what could not be written is written later."""

import errno
import os
import resource
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from lumina_jax.failures import written_to
from lumina_jax.training.jsonl import Jsonl, read_metrics
from lumina_jax.training.logs import GrowingFile
from tests.training.test_metrics import events, with_tensorboard


class Limited:
    """Within the block no file of this process may grow beyond so many bytes."""

    def __init__(self, size):
        self.size = size

    def __enter__(self):
        self.handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        self.before = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (self.size, self.before[1]))

    def __exit__(self, *_):
        resource.setrlimit(resource.RLIMIT_FSIZE, self.before)
        signal.signal(signal.SIGXFSZ, self.handler)


def test_metrics_go_on_over_a_full_disk_and_are_whole_when_there_is_space_again(tmp_path, capsys):
    writer = with_tensorboard(tmp_path)
    writer.write(1, {"loss": 1.0})
    with Limited((tmp_path / "metrics.jsonl").stat().st_size + 10):  # half of a line fits
        for step in range(2, 200):
            writer.write(step, {"loss": float(step)})
        assert [line["step"] for line in read_metrics(tmp_path)] == [1], "no half of a line"
    writer.write(200, {"loss": 200.0})
    writer.close()
    assert [line["step"] for line in read_metrics(tmp_path)] == list(range(1, 201))
    steps = [event.step for event in events(tmp_path) for value in event.summary.value if value.tag == "loss"]
    assert steps == list(range(1, 201))
    warnings = capsys.readouterr().err.splitlines()
    assert len(warnings) == 2, "once a file"
    assert f"warning: metrics cannot be written to {tmp_path / 'metrics.jsonl'} (File too large)" in warnings[0]


def test_a_run_that_ends_while_the_disk_is_full_says_what_is_lost(tmp_path, capsys):
    writer = Jsonl(tmp_path, resumed_step=0)
    with Limited(0):
        writer.write(1, {"loss": 1.0})
        writer.close()
    assert f"warning: the last metrics are not in {tmp_path / 'metrics.jsonl'}" in capsys.readouterr().err


def test_a_run_resumes_its_curves_on_a_full_disk(tmp_path, capsys):
    writer = Jsonl(tmp_path, resumed_step=0)
    for step in (1, 2, 3):
        writer.write(step, {"loss": 1.0})
    writer.close()
    with Limited(0):
        Jsonl(tmp_path, resumed_step=2).close()
    assert [line["step"] for line in read_metrics(tmp_path)] == [1, 2]


def test_memory_holds_a_bounded_part_of_what_waits(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("lumina_jax.training.logs.WAITING_BYTES", 25)
    file = GrowingFile(tmp_path / "file", "numbers")
    with Limited(0):
        for number in range(9):
            file.write(b"%09d\n" % number)
    file.close()
    assert (tmp_path / "file").read_bytes() == b"%09d\n%09d\n" % (7, 8)


def test_a_folder_of_logs_that_cannot_be_made_stops_nothing(tmp_path, capsys):
    (tmp_path / "tensorboard").write_text("")
    writer = with_tensorboard(tmp_path)
    writer.write(1, {"loss": 1.0})
    writer.close()
    assert read_metrics(tmp_path) == [{"step": 1, "loss": 1.0}]
    assert "curves for TensorBoard cannot be written" in capsys.readouterr().err


@pytest.mark.parametrize(
    "error",
    [OSError(errno.ENOSPC, "No space left on device"), RuntimeError("I/O error: No space left (os error 28)")],
)
def test_a_full_disk_is_reported_with_its_folder(error):
    with (
        pytest.raises(OSError, match=r"latents cannot be written to /cache \(No space .*\); free .* vae.cache"),
        written_to("/cache", "latents", "vae.cache"),
    ):
        raise error


def test_other_errors_stay_as_they_are():
    with pytest.raises(FileNotFoundError, match="picture"), written_to("/cache", "latents", "vae.cache"):
        raise FileNotFoundError(errno.ENOENT, "missing", "picture.png")


SPEAKING = """
import os, sys
from lumina_jax.launch import outlive_output

outlive_output()
for number in range(20_000):
    print("line", number, "\\ud83d", flush=number % 2 == 0)
print("line", file=sys.stderr)
os.write(int(sys.argv[1]), b"done")
"""


@pytest.mark.parametrize("output", ["closed pipe", "full disk", "nothing"])
def test_output_that_nobody_takes_is_no_error(output, tmp_path):
    reading, writing = os.pipe()
    command = [sys.executable, "-c", SPEAKING, str(writing)]
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    if output == "closed pipe":
        command = ["bash", "-c", '"$@" 2>&1 | head -n 1; exit ${PIPESTATUS[0]}', "bash", *command]
    elif output == "full disk":
        command = ["bash", "-c", '"$@" > /dev/full 2>&1', "bash", *command]
    else:
        command = ["bash", "-c", '"$@" >&- 2>&-', "bash", *command]
    done = subprocess.run(command, env=environment, pass_fds=[writing], capture_output=True, timeout=180)
    os.close(writing)
    assert os.read(reading, 100) == b"done"
    assert done.returncode == 0
    assert b"Error" not in done.stderr
