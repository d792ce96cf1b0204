"""Tensor files, read one tensor at a time.

In: a .safetensors file, or a folder with one, or with several and the index that says which tensor lies where.
Out: a mapping from names to numpy arrays, in which each access reads one tensor from disk. `Renamed` shows such a
mapping under other names, and without the tensors that are not wanted.
"""

import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open

from lumina_jax.weights.tensors import Tensors

INDEX = "*.safetensors.index.json"
DTYPES = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}
"""Types of weights by their names in safetensors files."""


class TensorFiles(Tensors):
    """The tensors under `path` by name, in the type they are stored in.

    Raises:
      ValueError: there are no tensors, a file that the index names is missing, or a file is damaged.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self._where: dict[str, Path] = {}
        self._stored: dict[str, tuple[tuple[int, ...], str]] = {}
        for file in _files(self.path):
            for name, stored in _contents(file).items():
                if name in self._where:
                    raise ValueError(f"tensor {name} is both in {self._where[name]} and in {file}; remove one of them")
                self._where[name], self._stored[name] = file, stored

    @property
    def files(self) -> list[Path]:
        """The files that hold the tensors."""
        return sorted(set(self._where.values()))

    def __getitem__(self, name: str) -> np.ndarray:
        with _open(self._where[name]) as tensors:
            return tensors.get_tensor(name)

    def part(self, name: str, index: Any) -> np.ndarray:
        with _open(self._where[name]) as tensors:
            return tensors.get_slice(name)[index]

    def shape(self, name: str) -> tuple[int, ...]:
        return self._stored[name][0]

    def dtype(self, name: str) -> np.dtype:
        stored = self._stored[name][1]
        if stored not in DTYPES:
            raise ValueError(f"{name} is stored as {stored}, but weights must be one of {', '.join(DTYPES)}")
        return np.dtype(DTYPES[stored])

    def __iter__(self) -> Iterator[str]:
        return iter(self._where)

    def __len__(self) -> int:
        return len(self._where)


class Renamed(Mapping[str, np.ndarray]):
    """Tensors under the names that `rename` gives them; those that it gives None are left out, and never read.

    Raises:
      ValueError: two tensors would have one name.
    """

    def __init__(self, tensors: Mapping[str, np.ndarray], rename: Callable[[str], str | None]):
        self._tensors = tensors
        self._stored: dict[str, str] = {}
        for stored in tensors:
            name = rename(stored)
            if name is None:
                continue
            if name in self._stored:
                raise ValueError(f"{self._stored[name]} and {stored} both stand for {name}; remove one of them")
            self._stored[name] = stored

    def __getitem__(self, name: str) -> np.ndarray:
        return self._tensors[self._stored[name]]

    def __iter__(self) -> Iterator[str]:
        return iter(self._stored)

    def __len__(self) -> int:
        return len(self._stored)


def _files(path: Path) -> list[Path]:
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise ValueError(f"there is no file or folder {path}; name a .safetensors file, or the folder that holds it")
    indices = sorted(path.glob(INDEX))
    if not indices:
        found = sorted(path.glob("*.safetensors"))
        if len(found) != 1:
            raise ValueError(
                f"{path} must hold one .safetensors file, or several with a {INDEX}, but it holds {len(found)} "
                "files and no index; name the file itself"
            )
        return found
    if len(indices) > 1:
        raise ValueError(f"{path} holds {len(indices)} indices of tensors; name the folder or file of one model")
    try:
        files = sorted({path / name for name in json.loads(indices[0].read_text())["weight_map"].values()})
    except (ValueError, KeyError, AttributeError) as error:
        raise ValueError(f"{indices[0]} is no index of tensors ({error!r}); copy it again") from error
    missing = [file.name for file in files if not file.is_file()]
    if missing:
        raise ValueError(f"{path} lacks {', '.join(missing)}, which {indices[0].name} names; copy them there")
    return files


def _contents(file: Path) -> dict[str, tuple[tuple[int, ...], str]]:
    """Shape and type of each tensor of a file, from its header."""
    with _open(file) as tensors:
        slices = {name: tensors.get_slice(name) for name in tensors.keys()}  # noqa: SIM118
        return {name: (tuple(tensor.get_shape()), tensor.get_dtype()) for name, tensor in slices.items()}


def _open(file: Path) -> safe_open:
    try:
        return safe_open(file, framework="numpy")
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{file} is not a readable safetensors file ({error}); copy it again") from error
