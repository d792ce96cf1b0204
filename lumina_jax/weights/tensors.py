"""Named tensors that are read when they are asked for: what every source of weights offers.

In: a name. Out: a numpy array, or its shape and type without its values. `JoinedTensors` are those of several sources,
and `Renamed` are those of one under other names.
"""

from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import ml_dtypes  # noqa: F401  (numpy's bfloat16)
import numpy as np

WEIGHT_TYPES = ("float64", "float32", "float16", "bfloat16")


class Tensors(Mapping[str, np.ndarray]):
    """A mapping from names to arrays in the type they are stored in; nothing is kept."""

    @abstractmethod
    def shape(self, name: str) -> tuple[int, ...]: ...

    @abstractmethod
    def dtype(self, name: str) -> np.dtype: ...

    def part(self, name: str, index: Any) -> np.ndarray:
        """What `index`, a number or a tuple of slices, picks of a tensor; alone read from disk where possible."""
        return self[name][index]

    def __contains__(self, name: object) -> bool:
        """Whether there is a tensor of this name; it is not read, as it would be by the method of Mapping."""
        if not isinstance(name, str):
            return False
        try:
            self.shape(name)
        except KeyError:
            return False
        return True


class ComputedTensors(Tensors):
    """Tensors that a function makes on request.

    Args:
      shapes: shape and type of each tensor.
      read: the tensor of a name.
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
      ValueError: two sources have a tensor of one name.
    """

    def __init__(self, parts: Sequence[Tensors]):
        self._part_of: dict[str, Tensors] = {}
        for part in parts:
            for name in part:
                if name in self._part_of:
                    raise ValueError(f"tensor {name} is stored twice; remove one of the files that hold it")
                self._part_of[name] = part

    def __getitem__(self, name: str) -> np.ndarray:
        return self._part_of[name][name]

    def part(self, name: str, index: Any) -> np.ndarray:
        return self._part_of[name].part(name, index)

    def shape(self, name: str) -> tuple[int, ...]:
        return self._part_of[name].shape(name)

    def dtype(self, name: str) -> np.dtype:
        return self._part_of[name].dtype(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self._part_of)

    def __len__(self) -> int:
        return len(self._part_of)


class Renamed(Tensors):
    """Tensors under the names that `rename` gives them; those that it gives None are left out, and never read.

    Raises:
      ValueError: two tensors would have one name.
    """

    def __init__(self, tensors: Tensors, rename: Callable[[str], str | None]):
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


def check_weight(name: str, dtype: np.dtype) -> None:
    """Raises ValueError unless a tensor has a type that weights are computed with."""
    if dtype.name not in WEIGHT_TYPES:
        raise ValueError(
            f"{name} is stored as {dtype.name}, but weights must be one of {', '.join(WEIGHT_TYPES)}; integers are "
            "quantised weights or no weights at all, so take the checkpoint that was not quantised"
        )
