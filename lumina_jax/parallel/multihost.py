"""The processes of one job: how they start together, agree, and end together.

In: flags (`--hosts.coordinator`, `--hosts.count`, `--hosts.index`), the environment, or nothing at all on TPU VMs. Out:
`jax.devices()` of all of them. Where a program runs alone, everything here does nothing.

Process 0 answers at two ports of the coordinator: that of jax.distributed and, for `liveness`, the one above it.
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
"""So many seconds before jax gives up waiting, this does."""
LATENESS = 24 * 3600
"""Seconds that a barrier waits for the last process, as after encoding; one that died ends the job sooner."""
AFTERMATH = 3.0
"""Seconds in which the death of another process explains an error here, such as that of a collective."""
Report = Callable[[BaseException], None]


def join_arguments(hosts: HostsConfig, environment: Mapping[str, str], *, on_tpu: bool) -> dict[str, Any] | None:
    """Arguments of jax.distributed.initialize, which finds out by itself what is not among them; None: run alone.

    Raises:
      ValueError: something is missing, or is no number.
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
def joined(hosts: HostsConfig, report: Report) -> Iterator[None]:
    """Within the block this process is one of the job.

    If the block fails, `report` says why, and every process of the job ends. It does not return then: what jax and
    Orbax do at the end of a program waits for the other processes.

    Raises:
      ValueError, RuntimeError: not all processes of the job came, or the flags are incomplete.
    """
    arguments = join_arguments(hosts, os.environ, on_tpu=_on_tpu())
    watch = None if arguments is None else _start(arguments, hosts)
    if watch is None:
        yield
        return
    try:
        yield
    except BaseException as error:
        time.sleep(AFTERMATH)  # perhaps another process is gone: then the watch says so, and ends this one
        report(error)
        watch.fail(f"{type(error).__name__}: {error}")
        os._exit(1)
    jax.distributed.shutdown()  # waits for all
    watch.close()


def is_first() -> bool:
    """Whether this is the process that writes and speaks for all."""
    return jax.process_index() == 0


def say(text: str) -> None:
    """A line on the terminal, by one process."""
    if is_first():
        print(text, flush=True)


def gathered(value: Any) -> list[Any]:
    """The values of all processes, in order; each must call it, with anything that JSON holds."""
    if jax.process_count() == 1:
        return [value]
    words = np.frombuffer(json.dumps(value).encode(), np.uint8)
    lengths = multihost_utils.process_allgather(np.int32(words.size))
    padded = np.zeros(1 << int(lengths.max() - 1).bit_length(), np.uint8)  # few sizes, so few programs are compiled
    padded[: words.size] = words
    everyone = multihost_utils.process_allgather(padded)
    return [json.loads(bytes(of_one[:length])) for of_one, length in zip(everyone, lengths)]


def whole(array: jax.Array | np.ndarray) -> jax.Array | np.ndarray:
    """An array of which other processes may hold parts, on every process; each must call it."""
    if isinstance(array, np.ndarray) or array.is_fully_addressable:
        return array
    return multihost_utils.process_allgather(array, tiled=True)


def barrier(name: str) -> None:
    """Return when all processes have come here, however late; each name once.

    It goes through the coordinator, not the devices: the first collective of some devices gives up after half a minute
    on CPUs, if they don't come to it together.
    """
    everyone = set(range(jax.process_count()))
    if len(everyone) > 1:
        ocp.multihost.sync_global_processes(name, processes=everyone, timeout=LATENESS)


def compiled_together(function: Callable[..., Any]) -> Callable[..., Any]:
    """A jitted function, whose first call runs when every process has compiled it; later calls have the same shapes."""
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
    """Whether all processes see the same folder, as on a shared file system; each must call it. It is created."""
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
    """Refuse processes that differ in any of these values.

    Raises:
      ValueError: on every process; it names the values and the processes.
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
    """Within the block SIGTERM, SIGHUP and Ctrl-C only ask to stop; the value tells, after a step, whether to do so.

    A second Ctrl-C ends the process at once. SIGHUP and Ctrl-C stay ignored where they were, as after nohup. One
    process that is asked stops all after the same step, if each calls the value after every step.
    """
    asked, is_alone = False, jax.process_count() == 1

    def ask(number: int, _: Any) -> None:
        nonlocal asked
        asked = True
        if number == signal.SIGINT:
            signal.signal(signal.SIGINT, signal.SIG_DFL)
            with contextlib.suppress(OSError):
                os.write(2, b"\nsaving after this step; press Ctrl-C again to stop at once\n")
        if not is_alone:  # jax.distributed has its own handler of this signal, and agrees on the step
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
        raise ValueError(f"the variable {name}={environment[name]!r} must be a number")
    return int(environment[name])


def _on_tpu() -> bool:
    """Whether jax will run on TPUs of this machine; asked without starting jax."""
    platforms = os.environ.get("JAX_PLATFORMS", "")
    return (
        (not platforms or "tpu" in platforms)
        and importlib.util.find_spec("libtpu") is not None
        and any(glob.glob(pattern) for pattern in TPU_FILES)
    )


def _start(arguments: dict[str, Any], hosts: HostsConfig) -> Watch | None:
    """Meet the other processes and join them; None: jax found that this process is alone."""
    if not arguments:
        return _watch_of_found(hosts) if _found_by_jax(hosts) else None
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
    """Join the processes that jax finds out about; whether there is any but this."""
    why = (
        f"all processes of the job must start within hosts.start_timeout={hosts.start_timeout} seconds of each other, "
        "but some did not come; start them on every host with the same command"
    )  # jax would abort here, with the names of its own parts
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


def _watch_of_found(hosts: HostsConfig) -> Watch:
    """The watch of processes that jax has joined, whose addresses they tell each other."""
    index, count = jax.process_index(), jax.process_count()
    port = int(os.environ.get("JAX_COORDINATOR_PORT", TPU_COORDINATOR_PORT)) + 1
    watch = Watch(index, count, [("", port)], silence=hosts.silence)
    if index == 0:
        watch.listen()
    addresses = gathered(_own_addresses())[0]
    if index != 0:
        watch = Watch(index, count, [(address, port) for address in addresses], silence=hosts.silence)
    watch.meet(hosts.start_timeout)
    return watch


def _own_addresses() -> list[str]:
    """Of this host, the likeliest first."""
    found = []
    with contextlib.suppress(OSError), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as outwards:
        outwards.connect(("192.0.2.1", 9))  # sends nothing; asks which address would be used
        found.append(outwards.getsockname()[0])
    return [*found, socket.gethostname()]
