"""Compiles trials for a topology that is not attached, each batch in a separate process, and yields measurements.

libtpu reads LIBTPU_INIT_ARGS once in the life of a process, so the dumps need a fresh process (`worker`), whose
environment says where to write them. It runs optimised (-O), because tokamax has its types checked by an old typeguard,
and newer ones fail. A compiler that aborts ends its process: that trial is reported, and the others continue.
"""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path

from lumina_jax.chips import parse_topology
from lumina_jax.kernel_bench.measurements import Measurement, Trial
from lumina_jax.libtpu import add_libtpu

MARK = "@@"
"""Begins the lines of a worker's output that hold measurements."""
PASSES = "final_bundles|final_hlo-static|post-delay-converter"
"""The dumps that are read; writing all of the compiler's passes takes most of its time."""


def measure(trials: Sequence[Trial], topology: str) -> Iterator[Measurement]:
    """One measurement for each trial, in order, as soon as it is finished."""
    add_libtpu()
    parse_topology(topology)
    done = 0
    while done < len(trials):
        with tempfile.TemporaryDirectory(prefix="lumina_schedules_") as dump:
            worker = _start(trials[done:], topology, Path(dump))
            try:
                for measured in _read(worker):
                    yield measured
                    done += 1
            finally:  # also when the reader has seen enough
                worker.kill()
                worker.wait()
            if done < len(trials):
                said = (Path(dump) / "stderr").read_text(errors="replace").strip()
                if worker.returncode == 1:
                    raise RuntimeError(f"the compiling process failed outside any trial:\n{said[-2000:]}")
                yield Measurement(topology, trials[done], error=f"the compiler aborted: {said[-300:]}")
                done += 1


def _read(worker: subprocess.Popen[str]) -> Iterator[Measurement]:
    """The measurements that a worker prints until it ends."""
    assert worker.stdout
    for line in worker.stdout:
        if line.startswith(MARK):
            yield Measurement.from_json(json.loads(line[len(MARK) :]))
    worker.wait()


def _start(trials: Sequence[Trial], topology: str, dump: Path) -> subprocess.Popen[str]:
    job = {"topology": topology, "dump": str(dump / "schedules"), "trials": [asdict(trial) for trial in trials]}
    (dump / "schedules").mkdir()
    (dump / "job.json").write_text(json.dumps(job))
    with (dump / "stderr").open("w") as errors:
        return subprocess.Popen(
            [sys.executable, "-O", "-m", "lumina_jax.kernel_bench.worker", str(dump / "job.json")],
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            env=compiling_environment(topology, dump / "schedules"),
        )


def compiling_environment(topology: str, dump: Path) -> dict[str, str]:
    """The environment that libtpu needs to compile on a machine without a TPU and to dump its schedules."""
    root = str(Path(__file__).parents[2])
    paths = os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")]))
    flags = f"--xla_jf_dump_to={dump} --xla_jf_dump_llo_text=true --xla_jf_dump_llo_pass_label_regex={PASSES}"
    return {
        **os.environ,
        **parse_topology(topology).environment,
        "PYTHONPATH": paths,
        "TF_CPP_MIN_LOG_LEVEL": "3",
        "LIBTPU_INIT_ARGS": " ".join(filter(None, [os.environ.get("LIBTPU_INIT_ARGS"), flags])),
    }
