"""Named tensors that are read on access: the interface of every source of weights.

In: a name. Out: a numpy array, or its shape and type without the values. `JoinedTensors` combines several sources,
`Renamed` changes the names of one, and `Resized` the shapes.
"""

from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import ml_dtypes  # noqa: F401  (numpy's bfloat16)
import numpy as np

WEIGHT_TYPES = ("float64", "float32", "float16", "bfloat16")


class Tensors(Mapping[str, np.ndarray]):
    """A mapping from names to arrays in the type in which they are stored; it does not cache them."""

    @abstractmethod
    def shape(self, name: str) -> tuple[int, ...]: ...

    @abstractmethod
    def dtype(self, name: str) -> np.dtype: ...

    def part(self, name: str, index: Any) -> np.ndarray:
        """Return `tensor[index]` for an integer or a tuple of slices; if possible, only that part is read from disk."""
        return self[name][index]

    def __contains__(self, name: object) -> bool:
        """Whether there is a tensor with this name; unlike Mapping's method, this does not read it."""
        if not isinstance(name, str):
            return False
        try:
            self.shape(name)
        except KeyError:
            return False
        return True


class ComputedTensors(Tensors):
    """Tensors that a function returns on access.

    Args:
      shapes: the shape and the type of each tensor.
      read: a function from a name to the tensor.
    """

    def __init__(self, shapes: Mapping[str, tuple[tuple[int, ...], np.dtype]], read: Callable[[str], np.ndarray]):
        self._shapes, self._read = dict(shapes), read

    def __getitem__(self, name: str) -> np.ndarray:
        if name not in self._shapes:
            raise KeyError(name)
        return self._read(name)

    def shape(self, name: str) -> tuple[int, ...]:
        return self._shapes[name][0]

    def dtype(self, name: str) -> np.dtype:
        return self._shapes[name][1]

    def __iter__(self) -> Iterator[str]:
        return iter(self._shapes)

    def __len__(self) -> int:
        return len(self._shapes)


class JoinedTensors(Tensors):
    """The tensors of several sources.

    Raises:
      ValueError: two sources have a tensor with the same name.
    """

    def __init__(self, sources: Sequence[Tensors]):
        self._source: dict[str, Tensors] = {}
        for source in sources:
            for name in source:
                if name in self._source:
                    raise ValueError(f"tensor {name} is stored twice; remove one of the files that hold it")
                self._source[name] = source

    def __getitem__(self, name: str) -> np.ndarray:
        return self._source[name][name]

    def part(self, name: str, index: Any) -> np.ndarray:
        return self._source[name].part(name, index)

    def shape(self, name: str) -> tuple[int, ...]:
        return self._source[name].shape(name)

    def dtype(self, name: str) -> np.dtype:
        return self._source[name].dtype(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self._source)

    def __len__(self) -> int:
        return len(self._source)


class Renamed(Tensors):
    """Tensors under the names that `rename` returns; tensors for which it returns None are left out and never read.

    Raises:
      ValueError: two tensors would have the same name.
    """

    def __init__(self, tensors: Tensors, rename: Callable[[str], str | None]):
        self._tensors = tensors
        self._stored: dict[str, str] = {}
        for stored in tensors:
            name = rename(stored)
            if name is None:
                continue
            if name in self._stored:
                raise ValueError(f"{self._stored[name]} and {stored} are both renamed to {name}; remove one of them")
            self._stored[name] = stored

    def __getitem__(self, name: str) -> np.ndarray:
        return self._tensors[self._stored[name]]

    def part(self, name: str, index: Any) -> np.ndarray:
        return self._tensors.part(self._stored[name], index)

    def shape(self, name: str) -> tuple[int, ...]:
        return self._tensors.shape(self._stored[name])

    def dtype(self, name: str) -> np.dtype:
        return self._tensors.dtype(self._stored[name])

    def __iter__(self) -> Iterator[str]:
        return iter(self._stored)

    def __len__(self) -> int:
        return len(self._stored)


class Resized(Tensors):
    """Tensors with other sizes: the first values along each axis, and zeros after the last.

    Args:
      shapes: the shape of each; stacked ones keep their first axis.
    """

    def __init__(self, tensors: Tensors, shapes: Mapping[str, tuple[int, ...]]):
        self._tensors, self._shapes = tensors, shapes

    def __getitem__(self, name: str) -> np.ndarray:
        return resized(self._tensors[name], self._shapes[name])

    def part(self, name: str, index: Any) -> np.ndarray:
        if isinstance(index, int):
            return resized(self._tensors.part(name, index), self._shapes[name][1:])
        return self[name][index]

    def shape(self, name: str) -> tuple[int, ...]:
        self._tensors.shape(name)
        return self._shapes[name]

    def dtype(self, name: str) -> np.dtype:
        return self._tensors.dtype(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)


def resized(values: np.ndarray, shape: Sequence[int]) -> np.ndarray:
    """The first values along each axis, and zeros after the last where the shape is larger."""
    cut = values[tuple(slice(size) for size in shape)]
    missing = [(0, size - had) for size, had in zip(shape, cut.shape)]
    return np.pad(cut, missing) if any(after for _, after in missing) else cut


def check_weight(name: str, dtype: np.dtype) -> None:
    """Raise ValueError unless a tensor has a floating-point type that is supported."""
    if dtype.name not in WEIGHT_TYPES:
        raise ValueError(
            f"{name} is stored as {dtype.name}, but weights must be one of {', '.join(WEIGHT_TYPES)}; use the "
            "checkpoint that was not quantised"
        )
