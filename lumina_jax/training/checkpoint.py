"""Checkpoints of a run: written in the background and atomically, restored onto any mesh.

In: a state (any tree of arrays, typed random keys included), the position in the data (a JSON dictionary) and the
configuration. Out: a folder for each step, of which the newest, every `keep_every`-th and that of the lowest
held-out loss are kept. Each process of a job writes its part of the arrays, and any number of processes can read them.

On disk the state is flat: each array has its path as its name, such as `ema.blocks.mlp.up.kernel`, so that a part of
the state can be read alone. The folder of a step gets its name only when it is complete; incomplete folders of a killed
process have other names, are never read, and are removed when the next run opens the checkpoints.
"""

import contextlib
import importlib.util
import json
import logging
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import jax
import orbax.checkpoint as ocp
from etils import epath
from orbax.checkpoint.checkpoint_managers import preservation_policy as policies

from lumina_jax.config import Config, ModelConfig
from lumina_jax.config.model import EXECUTION_FIELDS
from lumina_jax.parallel.multihost import is_shared
from lumina_jax.training.early_stopping import Lowest, saved_lowest

Tree = TypeVar("Tree")

FILE_SYSTEMS = {"gs": ("gcsfs", "pip install 'lumina_jax[gcs]'"), "s3": ("s3fs", "pip install s3fs")}
"""The package that reads URLs with this scheme, and the command that installs it."""
LOCK_FILE = "lock.json"
"""The name of the file that locks a folder (`lock.py`)."""


def is_begun(folder: str | Path) -> bool:
    """Whether a run has opened this folder of checkpoints before. Nothing is created."""
    path = located(folder)
    return path.is_dir() and any(inside.name != LOCK_FILE for inside in path.iterdir())


class Checkpoints:
    """The checkpoints in one folder.

    Args:
      folder: created if missing, unless `read_only`; also a URL such as gs://bucket/name, with gcsfs installed. All
        processes of a job open the same one.
      keep: the number of newest checkpoints to keep.
      keep_every: keep every step that is a multiple of this as well.
      read_only: do not create, write or remove anything, to read the checkpoints of a run that still trains.

    Raises:
      ValueError: `read_only`, and there is no such folder.
      OSError: the folder cannot be created.
    """

    def __init__(self, folder: str | Path, *, keep: int = 1, keep_every: int | None = None, read_only: bool = False):
        logging.getLogger("absl").setLevel(logging.CRITICAL)  # Orbax raises the errors that it logs
        self._folder = located(folder)
        if read_only and not self._folder.is_dir():
            raise ValueError(f"there are no checkpoints in {self._folder}; name the folder of a run that has saved one")
        if not read_only:
            with self._writing():
                self._folder.mkdir(parents=True, exist_ok=True)
        self.lowest = Lowest()
        """The lowest held-out loss, if the run has a patience; its step is kept, and saved with the others."""
        options = ocp.CheckpointManagerOptions(
            preservation_policy=None
            if read_only
            else policies.AnyPreservationPolicy(
                [policies.LatestN(keep), *([policies.EveryNSteps(keep_every)] if keep_every else []), _OfLowest(self)]
            ),
            cleanup_tmp_directories=not read_only,
            create=False,
            read_only=read_only,
        )
        with self._writing():
            self._manager = ocp.CheckpointManager(self._folder, options=options)

    def is_shared(self) -> bool:
        """Whether all processes of the job see this folder. Each process must call this."""
        return "://" in str(self._folder) or is_shared(Path(self._folder))

    def save(self, step: int, state: Any, data_state: dict[str, Any], config_json: str) -> None:
        """Copy the state and write it in the background; a step that was saved before is not written again.

        When this returns, the state may be donated or overwritten. It waits for a save that still runs.

        Raises:
          OSError: this or the previous checkpoint cannot be written; the message names the folder.
        """
        if step in self._manager.all_steps():
            return
        parts = ocp.args.Composite(
            state=ocp.args.PyTreeSave(_flat(state)),
            data=ocp.args.JsonSave(data_state | self.lowest.saved),
            config=ocp.args.JsonSave(json.loads(config_json)),
        )
        with self._writing():
            self._manager.save(step, args=parts, force=True)

    def latest(self) -> int | None:
        """The newest complete step, or None."""
        return self._manager.latest_step()

    def steps(self) -> list[int]:
        """Every complete step, oldest first."""
        return sorted(self._manager.all_steps())

    def chosen(self, step: int | None) -> int:
        """The step, if it was saved; for None, the newest, or in a run with a patience that of the lowest loss.

        Raises:
          ValueError: there is no checkpoint, or none of this step.
        """
        saved = self.steps()
        if not saved:
            raise ValueError(f"{self._folder} has no checkpoint yet; train the run further")
        if step is not None and step not in saved:
            raise ValueError(
                f"step {step} must be one of the checkpoints in {self._folder}, which are {', '.join(map(str, saved))}"
            )
        if step is not None:
            return step
        lowest = saved_lowest(self.restore_data(saved[-1])).step
        return lowest if lowest in saved else saved[-1]

    def restore(self, step: int, abstract_state: Tree) -> Tree:
        """The state of a step.

        Args:
          step: one of `steps()`.
          abstract_state: a tree of `jax.ShapeDtypeStruct`s with the shardings to restore onto, which may differ from
            those of the saved state.

        Raises:
          ValueError: the state has other arrays or shapes, or cannot be read; the message names the folder.
        """
        return self._restore(step, abstract_state, prefix="", whole=True)

    def restore_subtree(self, step: int, name: str, abstract: Tree) -> Tree:
        """A part of the state, such as "ema", without reading the rest; see `restore`."""
        return self._restore(step, abstract, prefix=f"{name}.", whole=False)

    def restore_data(self, step: int) -> dict[str, Any]:
        """The position in the data that was saved with a step."""
        return self._read(step, data=ocp.args.JsonRestore())["data"]

    def restore_config(self, step: int) -> Config:
        """The configuration that was saved with a step."""
        return Config.from_json(json.dumps(self._read(step, config=ocp.args.JsonRestore())["config"]))

    def wait(self) -> None:
        """Wait until the last save is complete.

        Raises:
          OSError: it could not be written.
        """
        with self._writing():
            self._manager.wait_until_finished()

    def close(self) -> None:
        """Wait for the last save, and release the folder."""
        try:
            self.wait()
        finally:
            with self._writing():
                self._manager.close()

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """Close; but after an error in one of several processes do not wait, since the others will not save."""
        if kind is None or jax.process_count() == 1:
            self.close()

    def _restore(self, step: int, abstract: Tree, *, prefix: str, whole: bool) -> Tree:
        wanted = {prefix + name: leaf for name, leaf in _flat(abstract).items()}
        self._check_arrays(step, wanted, whole=whole)
        restore_args = ocp.checkpoint_utils.construct_restore_args(wanted)
        read = self._read(step, state=ocp.args.PyTreeRestore(wanted, restore_args=restore_args, partial_restore=True))
        return jax.tree.unflatten(jax.tree.structure(abstract), [read["state"][name] for name in wanted])

    def _check_arrays(self, step: int, wanted: dict[str, Any], *, whole: bool) -> None:
        """Refuse to restore into a tree with other names or shapes than those of the checkpoint."""
        with self._reading(step):
            index = ocp.PyTreeCheckpointer().metadata(self._folder / str(step) / "state").item_metadata
            if index is None:
                raise OSError("the list of its arrays is damaged or missing")
            saved = {name: tuple(array.shape) for name, array in index.tree.items()}
        shapes = {name: jax.eval_shape(_plain, leaf).shape for name, leaf in wanted.items()}
        wrong = [
            f"{name} is {saved.get(name, 'missing')} and should be {shape}"
            for name, shape in shapes.items()
            if saved.get(name) != shape
        ]
        wrong += [f"{name} is not wanted" for name in saved if whole and name not in shapes]
        if wrong:
            shown = "; ".join(wrong[:5]) + (f"; and {len(wrong) - 5} more" if len(wrong) > 5 else "")
            raise ValueError(
                f"the checkpoint {self._folder / str(step)} must hold the arrays of this model and optimizer, but "
                f"{shown}; use the configuration it was saved with, or another run.name"
            )

    def _read(self, step: int, **parts: Any) -> Any:
        with self._reading(step):
            return self._manager.restore(step, args=ocp.args.Composite(**parts))

    @contextlib.contextmanager
    def _reading(self, step: int) -> Iterator[None]:
        """Turn errors of reading into one that names the folder and a remedy."""
        if step not in self._manager.all_steps():
            raise ValueError(f"there is no checkpoint of {step=} in {self._folder}; there are {self.steps()}")
        try:
            yield
        except Exception as error:  # Orbax raises nothing narrower for damaged files
            if not (self._folder / str(step)).is_dir():
                raise ValueError(
                    f"the checkpoint {self._folder / str(step)} was removed while it was read, as its run does with "
                    "all but the newest; start the same command again"
                ) from None
            older = [other for other in self.steps() if other < step]
            remedy = f"resume from step {older[-1]}" if older else "start again"
            raise ValueError(
                f"a checkpoint must be whole, but {self._folder / str(step)} cannot be read ({_reason(error)}); "
                f"delete that folder to {remedy}"
            ) from None

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        """Turn errors of writing into one that names the folder and a remedy."""
        try:
            yield
        except Exception as error:  # TensorStore reports a full disk as a ValueError, the file system as an OSError
            raise OSError(
                f"a checkpoint cannot be written to {self._folder} ({_reason(error)}); complete checkpoints "
                "are untouched; free space there, or choose another run.root, and start the same command again"
            ) from error


class _OfLowest:
    """The policy of Orbax that keeps the checkpoint of the lowest loss."""

    def __init__(self, checkpoints: Checkpoints) -> None:
        self._checkpoints = checkpoints

    def should_preserve(self, checkpoints: Sequence[Any], *, context: Any) -> list[bool]:
        return [one.step == self._checkpoints.lowest.step for one in checkpoints]


def located(folder: str | Path) -> epath.Path:
    """An absolute path, or a URL.

    Raises:
      ValueError: URLs with this scheme cannot be read, or the package for them is not installed.
    """
    scheme, mark, _ = str(folder).partition("://")
    if not mark:
        return epath.Path(Path(folder).absolute())
    if scheme not in FILE_SYSTEMS:
        known = " or ".join(f"{name}://" for name in FILE_SYSTEMS)
        raise ValueError(f"folders are local, or URLs that begin with {known}, but {str(folder)!r} is neither")
    package, command = FILE_SYSTEMS[scheme]
    if importlib.util.find_spec(package) is None:
        raise ValueError(f"{folder} needs the package {package}; {command}")
    return epath.Path(folder)


def check_same_model(
    saved: ModelConfig,
    current: ModelConfig,
    rule: str,
    remedy: str = "restore these settings, or choose another run.name",
) -> None:
    """Refuse the parameters of one model with the configuration of another.

    Raises:
      ValueError: with the rule and each field that differs, except those in `EXECUTION_FIELDS`.
    """
    changed = changed_fields("model", saved, current, but=EXECUTION_FIELDS)
    if changed:
        raise ValueError(f"{rule}, but {'; '.join(changed)}; {remedy}")


def changed_fields(section: str, before: Any, now: Any, *, but: frozenset[str]) -> list[str]:
    """The fields that differ between two configurations of one section, except those in `but`."""
    old, new = before.settings(), now.settings()
    return [
        f"{section}.{name} was {old.get(name)!r} and is {new.get(name)!r}"
        for name in dict.fromkeys([*old, *new])
        if name not in but and old.get(name) != new.get(name)
    ]


def _flat(tree: Any) -> dict[str, Any]:
    """The leaves by path, such as optimizer.0.mu.blocks.mlp.up.kernel."""
    leaves = jax.tree.leaves_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="."): leaf for path, leaf in leaves}


def _plain(leaf: Any) -> Any:
    """The array in the form that is stored: the words of random keys."""
    return jax.random.key_data(leaf) if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key) else leaf


def _reason(error: BaseException) -> str:
    """The first cause of an error; for a report of TensorStore about a system error, only that error."""
    while error.__cause__ is not None:
        error = error.__cause__
    system = re.search(r"os_error_code='(\d+)'", str(error))
    return os.strerror(int(system[1])) if system else f"{type(error).__name__}: {error}"[:400]
