"""The devices of this machine, divided among runs that are trained at the same time.

In: the number of runs. Out: for each of them the cores that its process may use, or the variables that let it see some
of the accelerators. jax is not imported, because a process that has opened an accelerator keeps it.
"""

import glob
import os
from typing import NamedTuple

from lumina_jax.config.section import require
from lumina_jax.launch import DEVICE_FILES

BOUNDS = {1: "1,1,1", 2: "1,2,1", 4: "2,2,1", 8: "2,4,1"}
"""TPU chips along each axis of the part of a host that a process uses, by their number."""


class DeviceSet(NamedTuple):
    """The part of the machine that one run may use."""

    cores: tuple[int, ...]
    variables: dict[str, str]


def device_sets(jobs: int | None, cores: int | None, *, on_cpu: bool) -> list[DeviceSet]:
    """The parts of the machine for this number of runs at a time.

    Args:
      jobs: None: on CPUs as many as have these cores, else one.
      cores: of each run on CPUs; None: an equal part of all.
      on_cpu: whether the runs are trained on CPUs.

    Raises:
      ValueError: there are fewer cores or accelerators than runs need, or they cannot be divided equally.
    """
    available = tuple(sorted(os.sched_getaffinity(0)))
    if on_cpu and cores is not None:
        most = len(available) // cores
        require(
            most >= 1,
            f"each run of the grid has {cores} cores, but there are {len(available)}; run it on a machine with more, "
            "or plan it again with smaller --cores",
        )
    else:
        most, cores = len(available), None
    jobs = (most if cores is not None else 1) if jobs is None else jobs
    require(jobs >= 1, f"--jobs={jobs} must be at least 1")
    needed = "a core of its own" if cores is None else f"{cores} cores of its own"
    require(
        jobs <= most,
        f"each of --jobs={jobs} runs needs {needed}, but there are {len(available)} cores; give at most {most}",
    )
    each = len(available) // jobs if cores is None else cores
    parts = [available[job * each : (job + 1) * each] for job in range(jobs)]
    if on_cpu or jobs == 1:
        return [DeviceSet(part, {}) for part in parts]
    found = [file for pattern in DEVICE_FILES for file in glob.glob(pattern)]
    return [DeviceSet(part, variables) for part, variables in zip(parts, _visible(jobs, found))]


def _visible(jobs: int, files: list[str]) -> list[dict[str, str]]:
    """The variables of each run.

    Args:
      files: the device files of the accelerators.
    """
    is_gpu = any("nvidia" in file for file in files)
    chips = [file for file in files if ("nvidia" in file) == is_gpu]
    require(
        bool(chips) and len(chips) % jobs == 0,
        f"--jobs={jobs} must divide the {len(chips)} accelerators of this machine; choose a number that does",
    )
    each = len(chips) // jobs
    parts = [",".join(str(job * each + index) for index in range(each)) for job in range(jobs)]
    if is_gpu:
        return [{"CUDA_VISIBLE_DEVICES": part} for part in parts]
    require(each in BOUNDS, f"a run on TPUs needs {', '.join(map(str, BOUNDS))} chips, but {each} remain for each")
    bounds = {"TPU_CHIPS_PER_PROCESS_BOUNDS": BOUNDS[each], "TPU_PROCESS_BOUNDS": "1,1,1"}
    return [{"TPU_VISIBLE_CHIPS": part} | bounds for part in parts]
