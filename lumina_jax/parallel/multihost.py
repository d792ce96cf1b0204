"""The processes of one job: how they start together, agree, and end together.

In: flags (`--hosts.coordinator`, `--hosts.count`, `--hosts.index`), environment variables, or, on TPU VMs, nothing.
Out: `jax.devices()` of all processes. In a job of one process, everything here does nothing.

Process 0 listens at two ports of the coordinator: that of jax.distributed and, for `liveness`, the next one.
"""

import contextlib
import glob
import importlib.util
import json
import os
import signal
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils

from lumina_jax.config import HostsConfig
from lumina_jax.parallel.liveness import Watch, end_process

TPU_FILES = ("/dev/accel*", "/dev/vfio/[0-9]*")
TPU_COORDINATOR_PORT = 8482
"""The port that jax.distributed uses on TPU VMs, unless JAX_COORDINATOR_PORT says otherwise."""
EARLY = 10
"""Seconds by which this gives up waiting earlier than jax does."""
LATENESS = 24 * 3600
"""Seconds that a barrier waits for the last process, which may be encoding its data; one that died ends the job
sooner."""
AFTERMATH = 3.0
"""Seconds to wait after an error, such as that of a collective, for the news that another process died."""
OnError = Callable[[BaseException], None]


def join_arguments(hosts: HostsConfig, environment: Mapping[str, str], *, on_tpu: bool) -> dict[str, Any] | None:
    """Arguments for jax.distributed.initialize, which detects the others itself; None: a job of one process.

    Raises:
      ValueError: a value is missing, or is not a number.
    """
    coordinator = hosts.coordinator or environment.get("JAX_COORDINATOR_ADDRESS", "")
    count = _number(hosts.count, environment, "JAX_NUM_PROCESSES")
    index = _number(hosts.index, environment, "JAX_PROCESS_ID")
    if count == 1:
        return None
    if coordinator == "auto" or (on_tpu and not coordinator and count is None and index is None):
        return {}
    if not coordinator and count is None and index is None:
        return None
    given = {"coordinator": coordinator or None, "count": count, "index": index}
    missing = [f"hosts.{name}" for name, value in given.items() if value is None]
    if missing:
        raise ValueError(
            f"a job of several processes needs hosts.coordinator, hosts.count and hosts.index, but {missing} is not "
            "given; give all three, or none for one process, or --hosts.coordinator auto under Slurm or Open MPI"
        )
    host, _, port = coordinator.rpartition(":")
    if not host or not port.isdecimal():
        raise ValueError(f"hosts.coordinator={coordinator!r} must be the address of process 0, such as 10.0.0.2:8476")
    if count is not None and index is not None and not 0 <= index < count:
        raise ValueError(f"hosts.index={index} must be from 0 to hosts.count - 1 = {count - 1}")
    return {"coordinator_address": coordinator, "num_processes": count, "process_id": index}


@contextlib.contextmanager
def joined(hosts: HostsConfig, report: OnError) -> Iterator[None]:
    """Within the block this process is part of the job.

    If the block fails, `report` is called with the error, every process of the job ends, and this does not return: at
    the end of a program jax and Orbax would wait for the other processes.

    Raises:
      ValueError, RuntimeError: not all processes of the job started, or the flags are incomplete.
    """
    arguments = join_arguments(hosts, os.environ, on_tpu=_on_tpu())
    watch = None if arguments is None else _start(arguments, hosts)
    if watch is None:
        yield
        return
    try:
        yield
    except BaseException as error:
        time.sleep(AFTERMATH)  # if another process died, the watch reports that and ends this one
        report(error)
        watch.fail(f"{type(error).__name__}: {error}")
        os._exit(1)
    jax.distributed.shutdown()  # waits for all processes
    watch.close()


def is_first() -> bool:
    """Whether this is process 0, which writes and prints for all."""
    return jax.process_index() == 0


def say(text: str) -> None:
    """Print a line, in process 0 only."""
    if is_first():
        print(text, flush=True)


def gathered(value: Any) -> list[Any]:
    """The values of all processes, in order. Each must call it, with a value that JSON can hold."""
    if jax.process_count() == 1:
        return [value]
    words = np.frombuffer(json.dumps(value).encode(), np.uint8)
    lengths = multihost_utils.process_allgather(np.int32(words.size))
    padded = np.zeros(1 << int(lengths.max() - 1).bit_length(), np.uint8)  # few different sizes, so few programs
    padded[: words.size] = words
    everyone = multihost_utils.process_allgather(padded)
    return [json.loads(bytes(words[:length])) for words, length in zip(everyone, lengths)]


def whole(array: jax.Array | np.ndarray) -> jax.Array | np.ndarray:
    """The whole array on every process, where each process may hold a part. Each must call it."""
    if isinstance(array, np.ndarray) or array.is_fully_addressable:
        return array
    return multihost_utils.process_allgather(array, tiled=True)


def barrier(name: str) -> None:
    """Return when all processes have called this, however late. Each name can be used once.

    It uses the coordinator, not the devices: on CPUs the first collective fails if some devices reach it half a minute
    later than others.
    """
    everyone = set(range(jax.process_count()))
    if len(everyone) > 1:
        ocp.multihost.sync_global_processes(name, processes=everyone, timeout=LATENESS)


def compiled_together(function: Callable[..., Any]) -> Callable[..., Any]:
    """A jitted function whose first call waits until every process has compiled it. Later calls must have the same
    shapes."""
    if jax.process_count() == 1:
        return function
    programs: list[Callable[..., Any]] = []

    def call(*arguments: Any) -> Any:
        if not programs:
            programs.append(function.lower(*arguments).compile())  # type: ignore[attr-defined]
            barrier(f"compiled {getattr(function, '__name__', '')}")
        return programs[0](*arguments)

    return call


def is_shared(folder: Path) -> bool:
    """Whether all processes see the same folder, as on a shared file system. It is created. Each must call it."""
    folder.mkdir(parents=True, exist_ok=True)
    name = gathered(f".shared-{uuid.uuid4().hex}")[0]
    if is_first():
        (folder / name).touch()
    barrier(name)
    seen = gathered((folder / name).exists())
    if is_first():
        (folder / name).unlink()
    return all(seen)


def check_agreement(values: Mapping[str, Any], remedy: str) -> None:
    """Refuse to continue if any of these values differs between processes.

    Raises:
      ValueError: on every process, with the values and the processes.
    """
    everyone = gathered(dict(values))
    different = [
        f"{name} is {everyone[0][name]!r} in process 0 and {other[name]!r} in process {index}"
        for index, other in enumerate(everyone)
        for name in values
        if other[name] != everyone[0][name]
    ]
    if different:
        raise ValueError(f"all processes of a job must agree, but {'; '.join(different[:5])}; {remedy}")


@contextlib.contextmanager
def stop_requests() -> Iterator[Callable[[int], bool]]:
    """Within the block SIGTERM, SIGHUP and Ctrl-C only request a stop; call the value after each step to learn of it.

    A second Ctrl-C ends the process at once. SIGHUP and Ctrl-C are ignored if they were ignored before, as after nohup.
    A request to one process stops all of them after the same step, if each calls the value after every step.
    """
    asked, is_alone = False, jax.process_count() == 1

    def ask(number: int, _: Any) -> None:
        nonlocal asked
        asked = True
        if number == signal.SIGINT:
            signal.signal(signal.SIGINT, signal.SIG_DFL)
            with contextlib.suppress(OSError):
                os.write(2, b"\nsaving after this step; press Ctrl-C again to stop at once\n")
        if not is_alone:  # the handler of jax.distributed, which lets all processes agree on the step
            os.kill(os.getpid(), signal.SIGTERM)

    numbers = [number for number in (signal.SIGINT, signal.SIGHUP) if signal.getsignal(number) != signal.SIG_IGN]
    numbers += [signal.SIGTERM] * is_alone
    is_allowed = threading.current_thread() is threading.main_thread()  # Python lets no other thread handle signals
    before = {number: signal.signal(number, ask) for number in numbers if is_allowed}
    try:
        yield (lambda step: asked) if is_alone else multihost_utils.reached_preemption_sync_point
    finally:
        for number, handler in before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)


def _number(flag: int | None, environment: Mapping[str, str], name: str) -> int | None:
    if flag is not None or not environment.get(name):
        return flag
    if not environment[name].isdecimal():
        raise ValueError(f"the environment variable {name}={environment[name]!r} must be a number")
    return int(environment[name])


def _on_tpu() -> bool:
    """Whether jax will run on TPUs of this machine, found without starting jax."""
    platforms = os.environ.get("JAX_PLATFORMS", "")
    return (
        (not platforms or "tpu" in platforms)
        and importlib.util.find_spec("libtpu") is not None
        and any(glob.glob(pattern) for pattern in TPU_FILES)
    )


def _start(arguments: dict[str, Any], hosts: HostsConfig) -> Watch | None:
    """Join the other processes; None: jax found that there are none."""
    if not arguments:
        return _watch_processes(hosts) if _found_by_jax(hosts) else None
    host, _, port = arguments["coordinator_address"].rpartition(":")
    index, count = arguments["process_id"], arguments["num_processes"]
    watch = Watch(index, count, [(host.strip("[]"), int(port) + 1)], silence=hosts.silence)
    if index == 0:
        watch.listen()
    watch.meet(hosts.start_timeout)
    jax.distributed.initialize(**arguments, **_timeouts(hosts))
    return watch


def _timeouts(hosts: HostsConfig) -> dict[str, Any]:
    return {"initialization_timeout": hosts.start_timeout, "heartbeat_timeout_seconds": hosts.silence}


def _found_by_jax(hosts: HostsConfig) -> bool:
    """Join the processes that jax detects; returns whether there are others."""
    why = (
        f"all processes of the job must start within hosts.start_timeout={hosts.start_timeout} seconds of each other, "
        "but some did not come; start them on every host with the same command"
    )  # without this, jax would abort with an internal error
    late = threading.Timer(max(1, hosts.start_timeout - EARLY), end_process, [why])
    late.daemon = True
    late.start()
    try:
        jax.distributed.initialize(**_timeouts(hosts))
    except ValueError as error:
        if hosts.coordinator:
            raise ValueError(
                f"hosts.coordinator={hosts.coordinator!r} needs a launcher that jax knows, such as Slurm or Open MPI, "
                f"but jax says: {str(error).rstrip('.')}; give hosts.coordinator, hosts.count and hosts.index instead"
            ) from None
        return False
    finally:
        late.cancel()
    return jax.process_count() > 1


def _watch_processes(hosts: HostsConfig) -> Watch:
    """The watch for processes that jax has joined. They exchange their addresses through jax."""
    index, count = jax.process_index(), jax.process_count()
    port = int(os.environ.get("JAX_COORDINATOR_PORT", TPU_COORDINATOR_PORT)) + 1
    watch = Watch(index, count, [("", port)], silence=hosts.silence)
    if index == 0:
        watch.listen()
    addresses = gathered(_addresses())[0]
    if index != 0:
        watch = Watch(index, count, [(address, port) for address in addresses], silence=hosts.silence)
    watch.meet(hosts.start_timeout)
    return watch


def _addresses() -> list[str]:
    """The addresses of this host, the likeliest first."""
    found = []
    with contextlib.suppress(OSError), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as outwards:
        outwards.connect(("192.0.2.1", 9))  # sends nothing, but selects the address that would be used
        found.append(outwards.getsockname()[0])
    return [*found, socket.gethostname()]
