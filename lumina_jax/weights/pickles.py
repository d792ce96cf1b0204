"""The tensors of a PyTorch .pth, .pt or .bin file, read without PyTorch and without running what is in it.

In: a file that torch.save wrote (a zip with a pickle, and the bytes of each storage). Out: its tensors by name, each
read from disk when it is asked for. A pickle can name any function of Python to be called; here only what rebuilds
tensors is known, under stand-ins that do nothing else, and any other name is an error before anything is called.
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
PLAIN = (bool, int, float, str, type(None))


class StorageType(NamedTuple):
    dtype: str


class Storage(NamedTuple):
    """The numbers that tensors are views of: a member of the zip."""

    key: str
    dtype: str
    size: int


class View(NamedTuple):
    """Where a tensor lies in its storage, counted in numbers."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]

    @property
    def extent(self) -> int:
        """From its first number to behind its last."""
        return 1 + sum((size - 1) * stride for size, stride in zip(self.shape, self.strides)) if all(self.shape) else 0


class _Names(dict):
    """An OrderedDict without the attributes that PyTorch hangs on it."""

    __slots__ = ()

    def __setstate__(self, state: Any) -> None:
        pass


class _TensorFromStorage:
    __slots__ = ()

    def __call__(self, storage: Any, offset: Any, shape: Any, strides: Any, *_: Any) -> View:
        view = View(storage, offset, tuple(shape), tuple(strides))
        numbers = (offset, *view.shape, *view.strides)
        if not isinstance(storage, Storage) or not all(type(number) is int and number >= 0 for number in numbers):
            raise pickle.UnpicklingError("a tensor is not described by a storage and whole numbers")
        if len(view.shape) != len(view.strides) or offset + view.extent > storage.size:
            raise pickle.UnpicklingError(f"a tensor of shape {view.shape} does not fit into its storage")
        return view


class _Unwrapped:
    """A parameter is its tensor."""

    __slots__ = ()

    def __call__(self, tensor: Any, *_: Any) -> Any:
        return tensor


class _Reader(pickle.Unpickler):
    """Knows tensors, storages and ordered dictionaries, and with `arguments` the class that argparse returns."""

    def __init__(self, stream: Any, path: Path, *, arguments: bool = False):
        super().__init__(stream, encoding="utf-8")
        self._path = path
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
                f"{self._path} holds tensors of a type that only PyTorch knows, such as its float8; take the "
                "checkpoint that was not quantised, or save the state_dict as safetensors"
            )
        if (module, name) not in self._known:
            raise ValueError(
                f"{self._path} contains code: it asks to load {module}.{name}, which is no part of a tensor, so it is "
                "not opened; save the state_dict alone with torch.save, or better as safetensors"
            )
        return self._known[module, name]

    def persistent_load(self, pid: Any) -> Storage:
        match pid:
            case ("storage", StorageType(dtype), str(key), _, int(count)) if count >= 0:
                return Storage(key, dtype, count)
        raise pickle.UnpicklingError("a storage is not described as PyTorch does")


class PickledTensors(Tensors):
    """The tensors of a state_dict that torch.save wrote.

    Args:
      within: the name under which a training run keeps the state_dict among other things, as Lightning does; where
        there is no such name, the file is the state_dict. What is no tensor is left out.

    Raises:
      ValueError: the file is damaged, of the format before PyTorch 1.6, holds something else than named tensors, or
        contains code; the message says which.
    """

    def __init__(self, path: str | Path, *, within: str | None = None):
        self.path = Path(path)
        value, self._members = _read(self.path)
        if within is not None and isinstance(value, Mapping):
            value = value.get(within, value)
        if not isinstance(value, Mapping):
            raise ValueError(f"{path} must hold named tensors, but it holds {type(value).__name__}; save a state_dict")
        if within is not None:
            value = {name: view for name, view in value.items() if isinstance(view, View)}
        other = [str(name) for name, view in value.items() if not (isinstance(view, View) and isinstance(name, str))]
        if other or not value:
            inside = [name for name, inner in value.items() if isinstance(inner, Mapping) and _has_tensors(inner)]
            remedy = f"; those under {' and '.join(map(repr, inside))} are tensors: save one of them" if inside else ""
            raise ValueError(
                f"{path} must hold tensors by name and nothing else, but {', '.join(other[:5]) or 'it is empty'}"
                f"{' are none' if other else ''}{remedy or '; save the state_dict alone'}"
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
        member = self._members.get(storage.key)
        wanted = storage.size * np.dtype(storage.dtype).itemsize
        if member is None or member.file_size < wanted or member.compress_type != zipfile.ZIP_STORED:
            raise ValueError(f"{self.path} lacks the {wanted} bytes of {name}; the file is damaged, copy it again")

    def _values(self, view: View) -> np.ndarray:
        dtype = np.dtype(view.storage.dtype)
        with self.path.open("rb") as file:
            file.seek(self._members[view.storage.key].header_offset)
            header = file.read(LOCAL_HEADER)
            names = int.from_bytes(header[26:28], "little") + int.from_bytes(header[28:30], "little")
            file.seek(names + view.offset * dtype.itemsize, 1)
            numbers = np.fromfile(file, dtype, view.extent)
        if not header.startswith(ZIP) or len(numbers) < view.extent:
            raise ValueError(f"{self.path} ends within a tensor; the file is damaged, copy it again")
        strides = [stride * dtype.itemsize for stride in view.strides]
        return np.lib.stride_tricks.as_strided(numbers, view.shape, strides, writeable=False)


def _has_tensors(value: Mapping[Any, Any]) -> bool:
    return any(isinstance(inner, View) for inner in value.values())


def read_arguments(path: str | Path) -> dict[str, Any]:
    """The arguments of a training script, as the authors save them: an argparse.Namespace, or a dictionary.

    Raises:
      ValueError: the file is damaged, contains code, or holds other things than numbers, strings and lists of them.
    """
    value, _ = _read(Path(path), arguments=True)
    found = value if isinstance(value, Mapping) else getattr(value, "__dict__", None)
    if found is None or not all(isinstance(name, str) and _is_plain(entry) for name, entry in found.items()):
        raise ValueError(f"{path} must hold the arguments of a script: names with numbers, strings and lists of them")
    return dict(found)


def _is_plain(value: Any) -> bool:
    if isinstance(value, Mapping):
        return all(isinstance(name, str) and _is_plain(entry) for name, entry in value.items())
    return all(map(_is_plain, value)) if isinstance(value, list | tuple) else isinstance(value, PLAIN)


def _read(path: Path, *, arguments: bool = False) -> tuple[Any, dict[str, zipfile.ZipInfo]]:
    """What a file holds, tensors as views, and the members of the zip that hold storages."""
    if not path.is_file():
        raise ValueError(f"{path} must be a file of PyTorch, but {'is a folder' if path.is_dir() else 'is missing'}")
    try:
        with zipfile.ZipFile(path) as archive:
            members = {info.filename: info for info in archive.infolist()}
            described = next((name for name in members if name.count("/") == 1 and name.endswith("/data.pkl")), None)
            if described is None:
                raise ValueError(f"{path} is a zip, but not one that torch.save wrote; name the weights of a model")
            folder = described.removesuffix("data.pkl")
            order = archive.read(f"{folder}byteorder") if f"{folder}byteorder" in members else b"little"
            if order.strip() != b"little":
                raise ValueError(f"{path} was written with {order!r} numbers first; save it on a common machine")
            with archive.open(described) as stream:
                value = _Reader(stream, path, arguments=arguments).load()
    except zipfile.BadZipFile as error:
        raise ValueError(_no_zip(path)) from error
    except Exception as error:  # a damaged pickle can raise anything
        if isinstance(error, ValueError) and str(path) in str(error):
            raise
        reason = f"{type(error).__name__}: {error}"
        raise ValueError(f"{path} is not a whole file of PyTorch ({reason}); copy it again") from error
    storages = f"{folder}data/"
    return value, {name.removeprefix(storages): info for name, info in members.items() if name.startswith(storages)}


def _no_zip(path: Path) -> str:
    with path.open("rb") as file:
        start = file.read(16)
    if start.startswith(ZIP):
        return f"{path} is cut off; copy it again"
    if start[:1] == b"\x80":
        return (
            f"{path} is of the format before PyTorch 1.6, which cannot be read without running it; where you trust it, "
            "resave it: torch.save(torch.load(path, map_location='cpu', weights_only=True), path)"
        )
    return describe_file(path, "is no file of PyTorch; name the .pth or .safetensors file of a model")
