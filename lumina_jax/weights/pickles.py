"""PyTorch files (.pth, .pt, .bin), read without PyTorch and without running code from the file.

In: a file written by torch.save: a zip file with a pickle and the bytes of each storage, or, before PyTorch 1.6,
several pickles followed by the storages. Out: its tensors by name, each read from disk on access. A pickle can call any
Python function. Here only the functions that rebuild tensors are allowed, and replaced by ones that do nothing else;
any other name is an error before anything is called.
"""

import pickle
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from lumina_jax.weights.formats import describe_file
from lumina_jax.weights.tensors import Tensors

STORAGES = {
    "DoubleStorage": "float64",
    "FloatStorage": "float32",
    "HalfStorage": "float16",
    "BFloat16Storage": "bfloat16",
    "LongStorage": "int64",
    "IntStorage": "int32",
    "ShortStorage": "int16",
    "CharStorage": "int8",
    "ByteStorage": "uint8",
    "BoolStorage": "bool",
}
ZIP, LOCAL_HEADER = b"PK\x03\x04", 30
LEGACY = b"\x80\x02\x8a\x0a\x6c\xfc\x9cF\xf9 j\xa8P\x19."
"""The first bytes of a file of PyTorch before 1.6: the pickle of a magic number."""
LEGACY_PROTOCOL = 1001
PLAIN = (bool, int, float, str, type(None))


class StorageType(NamedTuple):
    dtype: str


class Storage(NamedTuple):
    """A member of the zip file with the numbers that tensors are views of."""

    key: str
    dtype: str
    size: int


class StoredBytes(NamedTuple):
    """Where the bytes of a storage are in the file."""

    start: int
    """Of the member of the zip file, which begins with a header, or of the bytes themselves."""
    bytes: int
    is_member: bool


class View(NamedTuple):
    """The position of a tensor in its storage, counted in numbers rather than bytes."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]

    @property
    def extent(self) -> int:
        """The distance from the first number to after the last one."""
        return 1 + sum((size - 1) * stride for size, stride in zip(self.shape, self.strides)) if all(self.shape) else 0


class _Names(dict):
    """An OrderedDict without the attributes that PyTorch adds to it."""

    __slots__ = ()

    def __setstate__(self, state: Any) -> None:
        pass


class _TensorFromStorage:
    __slots__ = ()

    def __call__(self, storage: Any, offset: Any, shape: Any, strides: Any, *_: Any) -> View:
        view = View(storage, offset, tuple(shape), tuple(strides))
        numbers = (offset, *view.shape, *view.strides)
        if not isinstance(storage, Storage) or not all(type(number) is int and number >= 0 for number in numbers):
            raise pickle.UnpicklingError("a tensor must consist of a storage and integers")
        if len(view.shape) != len(view.strides) or offset + view.extent > storage.size:
            raise pickle.UnpicklingError(f"a tensor of shape {view.shape} does not fit into its storage")
        return view


class _Unwrapped:
    """Replaces a parameter by its tensor."""

    __slots__ = ()

    def __call__(self, tensor: Any, *_: Any) -> Any:
        return tensor


class _Reader(pickle.Unpickler):
    """Unpickles tensors, storages and ordered dictionaries, and argparse.Namespace if `arguments` is true."""

    def __init__(self, stream: Any, path: Path, *, arguments: bool = False):
        super().__init__(stream, encoding="utf-8")
        self._path = path
        self.storages: dict[str, Storage] = {}
        self._known: dict[tuple[str, str], Any] = {
            ("collections", "OrderedDict"): _Names,
            ("torch._utils", "_rebuild_tensor_v2"): _TensorFromStorage(),
            ("torch._utils", "_rebuild_parameter"): _Unwrapped(),
            **{("torch", name): StorageType(dtype) for name, dtype in STORAGES.items()},
        }
        if arguments:
            self._known["argparse", "Namespace"] = type("Namespace", (), {})

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("torch._utils", "_rebuild_tensor_v3"):
            raise ValueError(
                f"{self._path} contains tensors of a type that only PyTorch supports, such as float8; use the "
                "checkpoint that was not quantised, or save the state_dict as safetensors"
            )
        if (module, name) not in self._known:
            raise ValueError(
                f"{self._path} contains code: it loads {module}.{name}, which is not part of a tensor, so it is not "
                "opened; save only the state_dict with torch.save, or better as safetensors"
            )
        return self._known[module, name]

    def persistent_load(self, pid: Any) -> Storage:
        match pid:
            case ("storage", StorageType(dtype), str(key), _, int(count), *rest) if count >= 0 and not any(rest):
                return self.storages.setdefault(key, Storage(key, dtype, count))
        raise pickle.UnpicklingError("a storage does not have PyTorch's form")


class PickledTensors(Tensors):
    """The tensors of a state_dict written by torch.save.

    Args:
      within: the key of the state_dict in a checkpoint that also contains other objects, such as Lightning's. If the
        key is absent, the file itself is the state_dict. With `within`, entries that are not tensors are skipped.

    Raises:
      ValueError: the file is damaged, contains anything but named tensors, or contains code; the message says which.
    """

    def __init__(self, path: str | Path, *, within: str | None = None):
        self.path = Path(path)
        value, self._extents = _read(self.path)
        if within is not None and isinstance(value, Mapping):
            value = value.get(within, value)
        if not isinstance(value, Mapping):
            raise ValueError(
                f"{path} must contain named tensors, but contains a {type(value).__name__}; save a state_dict"
            )
        if within is not None:
            value = {name: view for name, view in value.items() if isinstance(view, View)}
        other = [str(name) for name, view in value.items() if not (isinstance(view, View) and isinstance(name, str))]
        if other or not value:
            inside = [name for name, inner in value.items() if isinstance(inner, Mapping) and _has_tensors(inner)]
            remedy = f"; save {' or '.join(map(repr, inside))}, which contains tensors" if inside else ""
            raise ValueError(
                f"{path} must contain only named tensors, but {', '.join(other[:5]) or 'is empty'}"
                f"{' are not tensors' if other else ''}{remedy or '; save only the state_dict'}"
            )
        self._views: dict[str, View] = dict(value)
        for name, view in self._views.items():
            self._check_storage(name, view.storage)

    def __getitem__(self, name: str) -> np.ndarray:
        return self._values(self._views[name])

    def part(self, name: str, index: Any) -> np.ndarray:
        view = self._views[name]
        if not isinstance(index, int) or not view.shape or not 0 <= index < view.shape[0]:
            return self[name][index]
        offset = view.offset + index * view.strides[0]
        return self._values(View(view.storage, offset, view.shape[1:], view.strides[1:]))

    def shape(self, name: str) -> tuple[int, ...]:
        return self._views[name].shape

    def dtype(self, name: str) -> np.dtype:
        return np.dtype(self._views[name].storage.dtype)

    def __iter__(self) -> Iterator[str]:
        return iter(self._views)

    def __len__(self) -> int:
        return len(self._views)

    def _check_storage(self, name: str, storage: Storage) -> None:
        extent = self._extents.get(storage.key)
        wanted = storage.size * np.dtype(storage.dtype).itemsize
        if extent is None or extent.bytes < wanted:
            raise ValueError(f"{self.path} lacks the {wanted} bytes of {name}; the file is damaged, copy it again")

    def _values(self, view: View) -> np.ndarray:
        dtype = np.dtype(view.storage.dtype)
        extent = self._extents[view.storage.key]
        with self.path.open("rb") as file:
            file.seek(extent.start)
            header = file.read(LOCAL_HEADER) if extent.is_member else b""
            names = int.from_bytes(header[26:28], "little") + int.from_bytes(header[28:30], "little")
            file.seek(names + view.offset * dtype.itemsize, 1)
            numbers = np.fromfile(file, dtype, view.extent)
        if (extent.is_member and not header.startswith(ZIP)) or len(numbers) < view.extent:
            raise ValueError(f"{self.path} ends in the middle of a tensor; the file is damaged, copy it again")
        strides = [stride * dtype.itemsize for stride in view.strides]
        return np.lib.stride_tricks.as_strided(numbers, view.shape, strides, writeable=False)


def _has_tensors(value: Mapping[Any, Any]) -> bool:
    return any(isinstance(inner, View) for inner in value.values())


def read_arguments(path: str | Path) -> dict[str, Any]:
    """Read the saved arguments of a training script: an argparse.Namespace or a dictionary.

    Raises:
      ValueError: the file is damaged, contains code, or contains anything but numbers, strings and lists of them.
    """
    value, _ = _read(Path(path), arguments=True)
    found = value if isinstance(value, Mapping) else getattr(value, "__dict__", None)
    if found is None or not all(isinstance(name, str) and _is_plain(entry) for name, entry in found.items()):
        raise ValueError(
            f"{path} must contain the arguments of a script, which are numbers, strings and lists; copy it again"
        )
    return dict(found)


def _is_plain(value: Any) -> bool:
    if isinstance(value, Mapping):
        return all(isinstance(name, str) and _is_plain(entry) for name, entry in value.items())
    return all(map(_is_plain, value)) if isinstance(value, list | tuple) else isinstance(value, PLAIN)


def _read(path: Path, *, arguments: bool = False) -> tuple[Any, dict[str, StoredBytes]]:
    """Unpickle a file, with tensors as views. Return its value, and where its storages are."""
    if not path.is_file():
        raise ValueError(
            f"{path} must be a PyTorch file, but {'is a folder' if path.is_dir() else 'is missing'}; name the file"
        )
    with path.open("rb") as file:
        is_legacy = file.read(len(LEGACY)) == LEGACY
    try:
        return (_read_legacy if is_legacy else _read_zip)(path, arguments)
    except zipfile.BadZipFile as error:
        raise ValueError(_no_zip(path)) from error
    except Exception as error:  # a damaged pickle can raise anything
        if isinstance(error, ValueError) and str(path) in str(error):
            raise
        reason = f"{type(error).__name__}: {error}"
        raise ValueError(f"{path} is not a valid PyTorch file ({reason}); copy it again") from error


def _read_zip(path: Path, arguments: bool) -> tuple[Any, dict[str, StoredBytes]]:
    with zipfile.ZipFile(path) as archive:
        members = {info.filename: info for info in archive.infolist()}
        described = next((name for name in members if name.count("/") == 1 and name.endswith("/data.pkl")), None)
        if described is None:
            raise ValueError(f"{path} is a zip file, but was not written by torch.save; name the weights of a model")
        folder = described.removesuffix("data.pkl")
        order = archive.read(f"{folder}byteorder") if f"{folder}byteorder" in members else b"little"
        _check_byte_order(path, is_little=order.strip() == b"little")
        with archive.open(described) as stream:
            value = _Reader(stream, path, arguments=arguments).load()
    storages = f"{folder}data/"
    return value, {
        name.removeprefix(storages): StoredBytes(info.header_offset, info.file_size, is_member=True)
        for name, info in members.items()
        if name.startswith(storages) and info.compress_type == zipfile.ZIP_STORED
    }


def _read_legacy(path: Path, arguments: bool) -> tuple[Any, dict[str, StoredBytes]]:
    """Read the format before PyTorch 1.6: pickles of a magic number, the protocol, the machine, the value and the order
    of its storages; then each storage as the count of its numbers and the numbers."""
    end = path.stat().st_size
    with path.open("rb") as file:
        _, protocol, machine = (_Reader(file, path).load() for _ in range(3))
        if protocol != LEGACY_PROTOCOL or not isinstance(machine, Mapping):
            raise pickle.UnpicklingError(f"{protocol=} must be {LEGACY_PROTOCOL}")
        _check_byte_order(path, is_little=machine.get("little_endian") is True)
        reader = _Reader(file, path, arguments=arguments)
        value, keys, extents = reader.load(), _Reader(file, path).load(), {}
        for key in keys:
            storage = reader.storages[key]
            count = int.from_bytes(file.read(8), "little", signed=True)
            extent = StoredBytes(file.tell(), storage.size * np.dtype(storage.dtype).itemsize, is_member=False)
            if count != storage.size or extent.start + extent.bytes > end:
                raise pickle.UnpicklingError(f"storage {key} is not complete")
            extents[key] = extent
            file.seek(extent.bytes, 1)
    return value, extents


def _check_byte_order(path: Path, *, is_little: bool) -> None:
    if not is_little:
        raise ValueError(f"{path} has another byte order than little-endian; save it again on a little-endian machine")


def _no_zip(path: Path) -> str:
    with path.open("rb") as file:
        start = file.read(16)
    if start.startswith(ZIP):
        return f"{path} is truncated; copy it again"
    if start[:1] == b"\x80":
        return f"{path} is a pickle that torch.save did not write; name the .pth or .safetensors file of a model"
    return describe_file(path, "is not a PyTorch file; name the .pth or .safetensors file of a model")
