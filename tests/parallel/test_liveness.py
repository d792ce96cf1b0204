"""How processes of a job meet, hear of each other's end, and are told who they are; several of them in threads."""

import json
import socket
import threading
import time

import pytest

from lumina_jax.config import HostsConfig
from lumina_jax.parallel.liveness import Watch
from lumina_jax.parallel.multihost import check_agreement, gathered, join_arguments, stop_requests


def free_port():
    """A port that nothing listens at, nor at the one above it."""
    while True:
        with socket.socket() as one, socket.socket() as next_one:
            one.bind(("", 0))
            try:
                next_one.bind(("", one.getsockname()[1] + 1))
            except OSError:
                continue
            return one.getsockname()[1]


class Job:
    """Watches of some processes of a job, and the reasons for which each would end."""

    def __init__(self, indices, count, silence=30.0, counts=None, timeout=10.0):
        self.reasons = {}
        self.ended = threading.Event()
        address = ("localhost", free_port())
        self.watches = {
            slot: Watch(
                index,
                (counts or {}).get(slot, count),
                [address],
                silence=silence,
                end=lambda why, slot=slot: self.end(slot, why),
            )
            for slot, index in enumerate(indices)
        }
        self.errors = {}
        threads = [threading.Thread(target=self.meet, args=(slot, timeout)) for slot in self.watches]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(20)
            assert not thread.is_alive()

    def meet(self, slot, timeout):
        watch = self.watches[slot]
        try:
            if watch._index == 0:
                watch.listen()
            watch.meet(timeout)
        except RuntimeError as error:
            self.errors[slot] = str(error)

    def end(self, slot, why):
        self.reasons[slot] = why
        self.ended.set()

    def wait_for(self, slots, seconds=5.0):
        deadline = time.monotonic() + seconds
        while set(self.reasons) < set(slots) and time.monotonic() < deadline:
            time.sleep(0.01)
        assert set(self.reasons) == set(slots)


def test_a_process_that_dies_ends_all_others_at_once_and_is_named():
    job = Job(range(4), 4)
    assert not job.errors
    started = time.monotonic()
    job.watches[2]._closed = True  # it sees nothing any more
    job.watches[2]._lines[0].shutdown(socket.SHUT_RDWR)  # what the system does for a process that is killed
    job.wait_for([0, 1, 3])
    assert time.monotonic() - started < 3
    assert all("process 2 of 4" in why and "is gone" in why for why in job.reasons.values())


def test_the_death_of_process_0_ends_all_others():
    job = Job(range(3), 3)
    job.watches[0]._closed = True
    for line in job.watches[0]._lines.values():
        line.shutdown(socket.SHUT_RDWR)
    job.wait_for([1, 2])
    assert all("process 0 of 3" in why for why in job.reasons.values())


def test_a_host_that_falls_silent_is_taken_for_lost():
    job = Job(range(3), 3, silence=0.8)
    time.sleep(1.5)
    assert not job.reasons, "nobody was silent"
    job.watches[1]._tell_all = lambda message: None
    job.wait_for([0, 1, 2])
    assert "process 1 of 3" in job.reasons[2]


@pytest.mark.parametrize("failing", [0, 1])
def test_an_error_of_one_process_is_told_by_all_others(failing):
    job = Job(range(3), 3)
    job.watches[failing].fail("ValueError: the disk is full")
    job.wait_for({0, 1, 2} - {failing})
    assert all(f"process {failing} of 3" in why and "the disk is full" in why for why in job.reasons.values())


def test_processes_that_say_goodbye_end_nobody():
    job = Job(range(3), 3)
    for slot in (1, 0, 2):
        job.watches[slot].close()
        time.sleep(0.1)
    assert not job.reasons


def test_missing_processes_are_named_to_all_that_came():
    job = Job([0, 2], 5, timeout=0.5)
    assert set(job.errors) == {0, 1}
    assert all("processes 1, 3, 4 did not come" in error for error in job.errors.values())


def test_process_0_that_does_not_answer_is_named():
    job = Job([1], 2, timeout=0.5)
    assert "process 0 must answer at localhost:" in job.errors[0]


def test_a_port_that_is_taken_is_named_with_the_remedy():
    with socket.create_server(("", 0)) as other:
        port = other.getsockname()[1]
        with pytest.raises(OSError, match=rf"port {port} must be free .* choose another port"):
            Watch(0, 2, [("localhost", port)], silence=1.0).listen()


def test_two_processes_of_one_index_and_different_counts_are_refused():
    same = Job([0, 1, 1], 3, timeout=1.0)
    assert any("two processes were started with hosts.index=1" in error for error in same.errors.values())
    different = Job([0, 1], 2, counts={1: 4}, timeout=1.0)
    assert all("hosts.count=4, and process 0 with 2" in error for error in different.errors.values())
    assert len(different.errors) == 2


def test_a_stranger_who_calls_disturbs_nobody():
    job = Job(range(2), 2)
    port = job.watches[0]._listener.getsockname()[1]
    for words in (b"GET / HTTP/1.1\r\n\r\n", b"[1, 2]\n", json.dumps({"index": "x"}).encode() + b"\n"):
        with socket.create_connection(("localhost", port)) as line:
            line.sendall(words)
    time.sleep(0.3)
    assert not job.reasons


ADDRESS = {"JAX_COORDINATOR_ADDRESS": "10.0.0.1:99", "JAX_NUM_PROCESSES": "4", "JAX_PROCESS_ID": "0"}


@pytest.mark.parametrize(
    ("flags", "environment", "on_tpu", "expected"),
    [
        ({}, {}, False, None),
        ({}, {}, True, {}),
        ({"count": 1}, {}, True, None),
        ({"coordinator": "auto"}, {}, False, {}),
        ({}, ADDRESS, True, ("10.0.0.1:99", 4, 0)),
        ({"coordinator": "a:7", "count": 3, "index": 2}, ADDRESS, False, ("a:7", 3, 2)),
        ({"index": 3}, ADDRESS, False, ("10.0.0.1:99", 4, 3)),
    ],
)
def test_flags_come_before_the_environment_and_tpus_need_neither(flags, environment, on_tpu, expected):
    names = ("coordinator_address", "num_processes", "process_id")
    wanted = dict(zip(names, expected)) if isinstance(expected, tuple) else expected
    assert join_arguments(HostsConfig(**flags), environment, on_tpu=on_tpu) == wanted


@pytest.mark.parametrize(
    ("flags", "environment", "message"),
    [
        ({"coordinator": "a:7", "count": 3}, {}, "hosts.index"),
        ({"index": 0}, {}, r"hosts.coordinator.*hosts.count"),
        ({"coordinator": "a", "count": 3, "index": 0}, {}, "such as 10.0.0.2:8476"),
        ({"index": 4}, ADDRESS, "from 0 to hosts.count - 1 = 3"),
        ({}, ADDRESS | {"JAX_PROCESS_ID": "x"}, "JAX_PROCESS_ID='x' must be a number"),
    ],
)
def test_half_an_address_is_refused_with_what_is_missing(flags, environment, message):
    with pytest.raises(ValueError, match=message):
        join_arguments(HostsConfig(**flags), environment, on_tpu=False)


def test_one_process_agrees_with_itself_and_gathers_itself():
    assert gathered({"a": [1, None]}) == [{"a": [1, None]}]
    check_agreement({"a": 1}, "nothing")
    with stop_requests() as stop_requested:
        assert not stop_requested(1)
