"""Connections between the processes of a job, which detect at once when one of them dies.

In: the address of process 0, which listens there; every other process keeps a connection to it. Out: `Watch.meet`
returns when all processes are connected, or names those that are missing. From then on, if a process ends without
saying so (its connection closes when it is killed; nothing arrives from a host that lost power or network), every other
process ends within a second, with a message on stderr. Otherwise they would wait in the next collective for minutes, or
forever.

Messages are JSON objects, one a line: {"index", "count", "name"} first, then {"alive"}, {"failed": why} or {"bye"};
from process 0 {"all": true} when all are connected, {"alive"}, {"end": why} or {"bye"}.
"""

import contextlib
import json
import os
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

Address = tuple[str, int]
RETRY = 0.2
"""Seconds between attempts to reach process 0."""
ENDED_BY_OTHERS = 143
"""Exit status of a process that ends because another died: that of a program ended by SIGTERM. Launchers such as XPK
restart a job after it, but not after 1, the status after an error in the settings."""
FAREWELL = 0.5
"""Seconds that process 0 waits before it ends, so that its last messages arrive."""


def end_process(why: str) -> None:
    """Print the reason on stderr and end this process, whatever it waits for."""
    print(f"error: {why}\nThis process ends too; start all of them again to continue.", file=sys.stderr, flush=True)
    sys.stdout.flush()
    os._exit(ENDED_BY_OTHERS)


class Watch:
    """The connections of this process.

    Args:
      index: the index of this process; 0 listens, the others connect.
      count: the number of processes.
      addresses: hosts and ports at which to try to reach process 0.
      silence: seconds without anything from a process after which it is considered dead.
      end: called with the reason when the job has ended.
    """

    def __init__(
        self,
        index: int,
        count: int,
        addresses: list[Address],
        *,
        silence: float,
        end: Callable[[str], None] = end_process,
    ) -> None:
        self._index, self._count, self._addresses, self._silence, self._end = index, count, addresses, silence, end
        self._lines: dict[int, socket.socket] = {}
        self._names: dict[int, str] = {}
        self._left: set[int] = set()
        self._changed = threading.Condition()
        self._all_here, self._refusal, self._closed = False, "", False
        self._listener: socket.socket | None = None

    def listen(self) -> int:
        """In process 0: accept connections from now on; returns the port.

        Raises:
          OSError: another program listens at this port.
        """
        port, family = self._addresses[0][1], socket.AF_INET6 if socket.has_dualstack_ipv6() else socket.AF_INET
        try:
            self._listener = socket.create_server(
                ("", port), family=family, dualstack_ipv6=family == socket.AF_INET6, backlog=1024
            )
        except OSError as error:
            raise OSError(
                f"port {port} must be free on the host of process 0 ({error}); end what uses it, such as an earlier "
                "attempt, or choose another port as hosts.coordinator"
            ) from error
        self._start(self._accept)
        return self._listener.getsockname()[1]

    def meet(self, timeout: float) -> None:
        """Return when all processes are connected.

        Raises:
          RuntimeError: after `timeout` seconds some are missing, or two processes have the same index.
        """
        deadline = time.monotonic() + timeout
        if self._index:
            self._connect(deadline, timeout)
        with self._changed:
            self._changed.wait_for(
                lambda: self._refusal or self._all_here or (not self._index and len(self._lines) == self._count - 1),
                timeout=max(0.0, deadline - time.monotonic()) + (RETRY + FAREWELL if self._index else 0),
            )
            if self._refusal:
                why = self._refusal
            elif self._all_here or (not self._index and len(self._lines) == self._count - 1):
                self._all_here, why = True, ""
            else:
                missing = sorted(set(range(1, self._count)) - self._lines.keys()) if not self._index else []
                which = f"process{'es' * (len(missing) > 1)} {', '.join(map(str, missing))}" if missing else "some"
                why = (
                    f"all {self._count} processes of the job must start within {timeout:g} seconds of each other, but "
                    f"{which} did not come; start them on every host with the same command, or set hosts.count to the "
                    "number of processes"
                )
        self._tell_all({"end": why} if why else {"all": True})
        if why:
            time.sleep(0 if self._index else FAREWELL)
            raise RuntimeError(why)
        self._start(self._beat)

    def fail(self, why: str) -> None:
        """Tell the others that this process ends with an error, which ends them too."""
        with self._changed:
            self._closed = True
        self._tell_all({"failed": why} if self._index else {"end": self._described(0, f"stopped: {why}")})
        time.sleep(FAREWELL)

    def close(self) -> None:
        """Tell the others that this process has finished; they may still be running."""
        with self._changed:
            self._closed = True
        self._tell_all({"bye": True})
        for line in [*self._lines.values(), *([self._listener] if self._listener else [])]:
            with contextlib.suppress(OSError):
                line.close()

    def _connect(self, deadline: float, timeout: float) -> None:
        line, refusal = None, OSError()
        while line is None:
            for address in self._addresses:
                try:
                    line = socket.create_connection(address, timeout=2)
                    break
                except OSError as error:
                    refusal = error
            else:
                if time.monotonic() > deadline:
                    host, port = self._addresses[0]
                    raise RuntimeError(
                        f"process 0 must answer at {host}:{port}, but did not within {timeout:g} seconds "
                        f"({refusal}); start it there, and let the other hosts reach this port and the one below it"
                    )
                time.sleep(RETRY)
        self._lines[0] = line
        self._names[0] = self._addresses[0][0]
        self._tell(line, {"index": self._index, "count": self._count, "name": _process_name()})
        self._start(self._follow, 0, self._messages(line))

    def _accept(self) -> None:
        assert self._listener is not None
        while not self._closed:
            try:
                line, _ = self._listener.accept()
            except OSError:
                return
            self._start(self._welcome, line)

    def _welcome(self, line: socket.socket) -> None:
        """Handle a new connection: from a process of the job, or from a stranger, which is closed."""
        messages = self._messages(line)
        hello = next(messages, {})
        index, count = hello.get("index"), hello.get("count")
        if not isinstance(index, int):
            line.close()
            return
        problem = ""
        if count != self._count or not 0 < index < self._count:
            problem = f"process {index} was started with hosts.count={count}, and process 0 with {self._count}"
        elif index in self._lines:
            problem = f"two processes were started with hosts.index={index}: {self._names[index]} and {hello['name']}"
        with self._changed:
            if problem:
                self._refusal = (
                    self._refusal
                    or f"every process must have an index that no other has, and the same hosts.count, but {problem}"
                )
                self._tell(line, {"end": self._refusal})
            else:
                self._names[index], self._lines[index] = str(hello.get("name")), line
            self._changed.notify_all()
        if not problem:
            self._follow(index, messages)

    def _follow(self, index: int, messages: Iterator[dict[str, Any]]) -> None:
        """Handle the messages of process `index` until it ends."""
        for message in messages:
            if "all" in message:
                with self._changed:
                    self._all_here = True
                    self._changed.notify_all()
            elif "end" in message:
                self._over(message["end"])
                return
            elif "failed" in message:
                self._over(self._described(index, f"stopped: {message['failed']}"))
                return
            elif "bye" in message:
                self._left.add(index)
                return
        self._over(self._described(index, "is gone: it was killed, or its host is lost"))

    def _messages(self, line: socket.socket) -> Iterator[dict[str, Any]]:
        """The messages from a connection, until it is closed or silent for too long."""
        line.settimeout(self._silence)
        with contextlib.suppress(OSError, ValueError), line.makefile("r") as words:
            for word in words:
                message = json.loads(word)
                if not isinstance(message, dict):  # a stranger
                    return
                yield message

    def _over(self, why: str) -> None:
        """Tell the others that the job has ended, and end."""
        with self._changed:
            if self._closed:
                return
            if not self._all_here:  # `meet` is still waiting, and raises the refusal
                self._refusal = self._refusal or why
                self._changed.notify_all()
                return
            self._closed = True
        if not self._index:
            self._tell_all({"end": why})
            time.sleep(FAREWELL)
        self._end(why)

    def _beat(self) -> None:
        while not self._closed:
            self._tell_all({"alive": True})
            time.sleep(self._silence / 4)

    def _tell_all(self, message: dict[str, Any]) -> None:
        for index, line in list(self._lines.items()):
            if index not in self._left:
                self._tell(line, message)

    @staticmethod
    def _tell(line: socket.socket, message: dict[str, Any]) -> None:
        with contextlib.suppress(OSError):  # the thread that reads this connection finds that it is broken
            line.sendall(json.dumps(message).encode() + b"\n")

    def _described(self, index: int, what: str) -> str:
        name = _process_name() if index == self._index else self._names.get(index, "")
        return f"process {index} of {self._count} ({name}) {what}"

    @staticmethod
    def _start(target: Callable[..., None], *arguments: Any) -> None:
        threading.Thread(target=target, args=arguments, daemon=True).start()


def _process_name() -> str:
    return f"{socket.gethostname()}, process id {os.getpid()}"
