"""Named tensors that are read when they are asked for: what every source of weights offers.

In: a name. Out: a numpy array, or its shape and type without its values.
"""

from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import ml_dtypes  # noqa: F401  (numpy's bfloat16)
import numpy as np


class Tensors(Mapping[str, np.ndarray]):
    """A mapping from names to arrays in the type they are stored in; nothing is kept."""

    @abstractmethod
    def shape(self, name: str) -> tuple[int, ...]: ...

    @abstractmethod
    def dtype(self, name: str) -> np.dtype: ...

    def part(self, name: str, index: Any) -> np.ndarray:
        """What `index`, a number or a tuple of slices, picks of a tensor; alone read from disk where possible."""
        return self[name][index]


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
