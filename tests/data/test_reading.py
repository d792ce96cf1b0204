"""Samples are read by threads or processes, and the end of a process is noticed at whatever moment it comes."""

import json
import os
import signal
import subprocess
import sys
import time

import grain
import numpy as np
import pytest

from lumina_jax.data.batches import Stream
from lumina_jax.data.example import ChangedSourceError
from lumina_jax.data.reading import ReadAhead, WorkerLostError
from tests.data.numbered import LABEL, Numbered, assert_same, small, take


class Slow:
    """Large samples, slow to read; one index is an error that cannot be pickled, others end or hold their process."""

    def __len__(self):
        return 10**6

    def __getitem__(self, index):
        if index == 999:
            raise type("LocalError", (Exception,), {})("no such sample")
        if index == 1000:
            os.kill(os.getpid(), signal.SIGKILL)
        if index == 1001:
            time.sleep(60)
        return np.full(2**20, index % 251, np.uint8), os.getpid()


def reader(workers=2):
    return ReadAhead(grain.MapDataset.source(Slow()), workers=workers, threads=2)


def test_a_killed_worker_is_an_error_that_names_the_cause_and_closing_does_not_wait():
    samples = reader()
    processes = {samples.read(index)[1] for index in range(4)}
    samples.want([0, 1, 1000, 2, 3])
    started = time.monotonic()
    with pytest.raises(WorkerLostError, match="ended by signal 9, as the system does when memory runs out; lower data"):
        samples.read(1000)
    samples.close()
    assert time.monotonic() - started < 20
    assert not any(os.path.exists(f"/proc/{process}") for process in processes)
    assert samples.read(5)[0][0] == 5, "closed, it starts again"
    samples.close()


@pytest.mark.parametrize("workers", [0, 1])
def test_of_many_samples_wanted_at_once_each_is_the_one_that_is_read(workers):
    samples, wanted = reader(workers), [39, 0, 17, *range(1, 17), *range(18, 39)]
    samples.want(range(40))
    assert [samples.read(index)[0][0] for index in wanted] == wanted
    samples.close()


@pytest.mark.slow
def test_workers_killed_while_they_hand_over_a_sample_are_noticed():
    """A sample is larger than a pipe holds, so that at most moments a worker is in the middle of it."""
    for delay in (0.0, 0.005):
        samples = reader()
        victim = samples.read(0)[1]
        samples.want(range(1, 200))
        time.sleep(delay)
        os.kill(victim, signal.SIGKILL)
        with pytest.raises(WorkerLostError):
            list(map(samples.read, range(1, 200)))
        samples.close()


def test_requests_to_stop_do_not_reach_workers():
    with_workers = reader(1)
    process = with_workers.read(0)[1]
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        os.kill(process, number)
    assert with_workers.read(1)[1] == process
    with_workers.close()


def test_an_error_of_a_worker_is_handed_over_whatever_it_is():
    samples = reader(1)
    with pytest.raises(RuntimeError, match="LocalError: no such sample"):
        samples.read(999)
    assert samples.read(1)[0][0] == 1
    samples.close()


class Failing(Numbered):
    """Numbered, which is found to have changed at one sample while `is_down`."""

    is_down = False

    def __getitem__(self, index):
        if index == 5 and Failing.is_down:
            raise ChangedSourceError("the file was overwritten")
        return super().__getitem__(index)


def test_after_an_error_the_state_is_that_of_the_last_batch_handed_out():
    with Stream(Failing(12), small(prefetch=1), LABEL, seed=0) as stream:
        expected = take(stream, 8)
    Failing.is_down = True
    with Stream(Failing(12), small(prefetch=1), LABEL, seed=0) as stream:
        batches = []
        with pytest.raises(ChangedSourceError, match="was overwritten"):
            batches.extend(stream)
        state = json.loads(json.dumps(stream.state()))
    Failing.is_down = False
    with Stream(Failing(12), small(prefetch=1), LABEL, seed=0) as stream:
        stream.restore(state)
        assert_same(batches + take(stream, 8 - len(batches)), expected)


UNCLOSED = """
from tests.data.numbered import LABEL, Numbered, small
from lumina_jax.data.batches import Stream

if __name__ == "__main__":
    next(Stream(Numbered(12), small(workers=1), LABEL, seed=0))
"""


def test_a_program_that_closes_nothing_ends_all_the_same():
    environment = os.environ | {"PYTHONPATH": os.getcwd()}
    done = subprocess.run([sys.executable, "-c", UNCLOSED], env=environment, timeout=120, capture_output=True)
    assert done.returncode == 0, done.stderr
