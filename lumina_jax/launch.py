"""What must be settled before jax is imported: the memory allocator of a run on CPU, and where its output goes.

glibc gives the temporaries of each step back to the kernel and faults them in again at the next one, which costs a
training step on CPU a sixth to a third of its time. Environment variables that keep them are read when a process
starts, so the entry scripts start themselves again once.
"""

import contextlib
import glob
import importlib.util
import io
import os
import platform
import sys
from typing import Any

KEEP_MEMORY = {
    "MALLOC_ARENA_MAX": "1",
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": "100000000000",
}
NVIDIA_FILES = ("/dev/nvidia[0-9]*", "/dev/dxg")
"""Of NVIDIA GPUs, the second under Windows (WSL), where it may be that of another GPU."""
OTHER_FILES = ("/dev/accel*", "/dev/vfio/[0-9]*", "/dev/kfd")
DEVICE_FILES = (*OTHER_FILES, NVIDIA_FILES[0])
CUDA_PLUGINS = ("jax_cuda12_plugin", "jax_cuda13_plugin")
"""The modules with which jax computes on NVIDIA GPUs: those of the extras cuda and cuda13."""


def keep_memory_on_cpu() -> None:
    """Restart this program with `KEEP_MEMORY` set, once, if it will run on CPU under glibc.

    A variable that is already set is respected; LUMINA_ALLOCATOR=system turns the restart off.
    """
    if os.environ.get("LUMINA_ALLOCATOR") == "system" or platform.libc_ver()[0] != "glibc":
        return
    if any(name in os.environ for name in KEEP_MEMORY) or not runs_on_cpu():
        return
    os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], os.environ | KEEP_MEMORY)


def outlive_output() -> None:
    """From now on nothing that happens to standard output and error is an error: a pipe that is closed, a terminal that
    is gone and a disk that is full swallow what is printed, and letters they don't know are escaped."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            continue
        with contextlib.suppress(OSError):
            stream.flush()
        raw = _Unfailing(stream.fileno(), "wb", closefd=False)
        whole_lines = stream.line_buffering or name == "stderr"
        text = io.TextIOWrapper(io.BufferedWriter(raw), stream.encoding, "backslashreplace", line_buffering=whole_lines)
        setattr(sys, name, text)


class _Unfailing(io.FileIO):
    def write(self, data: Any) -> int:
        try:
            return super().write(data) or 0
        except OSError:
            return memoryview(data).nbytes


def runs_on_cpu() -> bool:
    """Whether jax will compute on the CPU, as far as its environment, plugins and devices of this machine tell."""
    platforms = os.environ.get("JAX_PLATFORMS", "")
    if platforms:
        return platforms == "cpu"
    if any(glob.glob(pattern) for pattern in OTHER_FILES):
        return False
    is_usable = any(importlib.util.find_spec(plugin) for plugin in CUDA_PLUGINS)
    return not (is_usable and any(glob.glob(pattern) for pattern in NVIDIA_FILES))
