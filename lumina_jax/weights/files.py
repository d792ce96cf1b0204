"""Safetensors files, read one tensor at a time.

In: a .safetensors file, or a folder with one such file or with several and their index. Out: a mapping from names to
numpy arrays, in which each access reads one tensor from disk. 8-bit values are returned as bfloat16, which represents
each of them exactly.
"""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from safetensors import SafetensorError, safe_open

from lumina_jax.weights.formats import SAFETENSORS_HEADER, describe_file
from lumina_jax.weights.indices import indexed_files
from lumina_jax.weights.rules import listed
from lumina_jax.weights.tensors import Renamed as Renamed
from lumina_jax.weights.tensors import Tensors

INDEX, VARIANT_INDEX = "*.safetensors.index.json", "*.safetensors.index.*.json"
VARIANT = re.compile(r"(.+)\.(fp16|bf16|fp32|non_ema)(-\d+-of-\d+)?\.safetensors")
"""The names of variants that diffusers saves next to the usual file, in another type or without averaging."""
DTYPES = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}
"""The numpy types of weights, by their names in safetensors files."""
FLOAT8 = {
    "F8_E4M3": ml_dtypes.float8_e4m3fn,
    "F8_E5M2": ml_dtypes.float8_e5m2,
    "F8_E4M3FNUZ": ml_dtypes.float8_e4m3fnuz,
    "F8_E5M2FNUZ": ml_dtypes.float8_e5m2fnuz,
}
SCALE_NAMES = re.compile(
    r"(^|[._])(scale_weight|weight_scale(_inv)?|weight_scale_2|scale_input|input_scale|scaled_fp8)$"
)
"""The names of the scales of quantised 8-bit weights, without which the values are meaningless."""


class TensorFiles(Tensors):
    """The tensors of a file or folder by name, in the type in which they are stored.

    Raises:
      ValueError: there are no tensors, a file of the index is missing, or a file is damaged.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self._file_by_name: dict[str, Path] = {}
        self._stored: dict[str, tuple[tuple[int, ...], str]] = {}
        for file in _files(self.path):
            for name, stored in _contents(file).items():
                if name in self._file_by_name:
                    raise ValueError(
                        f"tensor {name} is both in {self._file_by_name[name]} and in {file}; remove one of the files"
                    )
                self._file_by_name[name], self._stored[name] = file, stored

    @property
    def files(self) -> list[Path]:
        """The files that hold the tensors."""
        return sorted(set(self._file_by_name.values()))

    @property
    def notes(self) -> list[str]:
        """Notes for the user about the type in which the values are stored."""
        small = sorted({stored for _, stored in self._stored.values() if stored in FLOAT8})
        return [f"stored as {', '.join(small)}, read as bfloat16, which represents the values exactly"] if small else []

    def __getitem__(self, name: str) -> np.ndarray:
        shape, stored = self._stored[name]
        if stored in FLOAT8:
            self.dtype(name)
            return _bytes(self._file_by_name[name], name).view(FLOAT8[stored]).reshape(shape).astype(ml_dtypes.bfloat16)
        with self._opened(name) as tensors:
            return tensors.get_tensor(name)

    def part(self, name: str, index: Any) -> np.ndarray:
        if self._stored[name][1] in FLOAT8:
            return self[name][index]
        with self._opened(name) as tensors:
            return tensors.get_slice(name)[index]

    def shape(self, name: str) -> tuple[int, ...]:
        return self._stored[name][0]

    def dtype(self, name: str) -> np.dtype:
        stored = self._stored[name][1]
        if stored in FLOAT8:
            if scales := [other for other in self._stored if SCALE_NAMES.search(other)]:
                raise ValueError(
                    f"{name} is stored as {stored} with a separate scale ({listed(scales, most=2)}), which is not "
                    "supported; use the checkpoint that was not quantised"
                )
            return np.dtype(ml_dtypes.bfloat16)
        if stored not in DTYPES:
            raise ValueError(
                f"{name} is stored as {stored}, but weights must be one of {', '.join((*DTYPES, *FLOAT8))}; use "
                "the checkpoint that was not quantised"
            )
        return np.dtype(DTYPES[stored])

    def __iter__(self) -> Iterator[str]:
        return iter(self._file_by_name)

    def __len__(self) -> int:
        return len(self._file_by_name)

    def _opened(self, name: str) -> safe_open:
        """Open the file of a tensor, after checking that numpy has its type."""
        stored = self._stored[name][1]
        if stored.startswith(("F8", "F6", "F4")):
            self.dtype(name)
        return _open(self._file_by_name[name])


def _files(path: Path) -> list[Path]:
    if path.is_file():
        return indexed_files(path) if path.match("*.index*.json") else [path]
    if not path.is_dir():
        raise ValueError(f"there is no file or folder {path}; name a .safetensors file, or the folder that contains it")
    if indices := sorted(path.glob(INDEX)) or sorted(path.glob(VARIANT_INDEX)):
        if len(indices) > 1:
            raise ValueError(f"{path} contains {len(indices)} index files; name the folder or file of one model")
        return indexed_files(indices[0])
    found = _without_variants(sorted(path.glob("*.safetensors")))
    if len(found) != 1:
        names = listed([file.name for file in found], most=5)
        raise ValueError(
            f"{path} must contain one .safetensors file, or several with a {INDEX}, but has no index and "
            f"{len(found)} files: {names}; name the file itself"
        )
    return found


def _without_variants(files: list[Path]) -> list[Path]:
    """Return the files without those variants whose usual file is also there."""
    names = {file.name for file in files}
    variants = {file: VARIANT.fullmatch(file.name) for file in files}
    return [
        file for file, match in variants.items() if not match or f"{match[1]}{match[3] or ''}.safetensors" not in names
    ]


def _contents(file: Path) -> dict[str, tuple[tuple[int, ...], str]]:
    """Read the shape and the type of each tensor from the header of a file."""
    with _open(file) as tensors:
        slices = {name: tensors.get_slice(name) for name in tensors.keys()}  # noqa: SIM118
        return {name: (tuple(tensor.get_shape()), tensor.get_dtype()) for name, tensor in slices.items()}


def _bytes(file: Path, name: str) -> np.ndarray:
    """Read the bytes of a tensor, for types that safetensors cannot return as numpy arrays."""
    with file.open("rb") as opened:
        length = int.from_bytes(opened.read(SAFETENSORS_HEADER), "little")
        start, end = json.loads(opened.read(length))[name]["data_offsets"]
        opened.seek(SAFETENSORS_HEADER + length + start)
        return np.frombuffer(opened.read(end - start), np.uint8)


def _open(file: Path) -> safe_open:
    try:
        return safe_open(file, framework="numpy")
    except (SafetensorError, OSError) as error:
        raise ValueError(describe_file(file, f"is not a readable safetensors file ({error}); copy it again")) from error
