"""The devices of a run as one mesh of named axes, and the sharding of a batch on it.

In: the numbers of devices that share each parameter (`fsdp`), each row of tokens (`sequence`) and each matrix product
(`tensor`).
Out: a `jax.sharding.Mesh`. Rows of a batch are spread over data and fsdp, tokens of a row over sequence; parameters are
spread by the table of `parallel/axes.py`.

A logical axis is one mesh axis or several: on a TPU, one for each dimension of the torus of chips that it runs along,
with the names of both: ("fsdp_x", "fsdp_y", "fsdp_z"). Only sums along one dimension of the torus at a time compile to
real reduce-scatters; sums over several at once become all-reduces with twice the traffic. So no code may assume that
`mesh.axis_names` contains "fsdp"; use `axes_of(mesh, "fsdp")` and `axis_size(mesh, "fsdp")`.
"""

import itertools
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec

from lumina_jax.config import Config, MeshConfig, ModelConfig

AnyMesh = Mesh | AbstractMesh
FAMILIES = ("data", "fsdp", "sequence_ring", "sequence_heads", "tensor")
"""Mesh axes from the slowest to the fastest links. Sequence has two: for the ring of keys, and the exchange of
heads."""
Devices = Sequence[Any]
"""`jax.Device`s, or descriptions of the devices of a topology that does not exist here."""
Split = Mapping[str, Sequence[int]]


def make_mesh(
    *,
    fsdp: int | None = 1,
    sequence: int = 1,
    ring: int = 1,
    tensor: int = 1,
    devices: Devices | None = None,
    slices: int | None = None,
    split: Split | None = None,
) -> Mesh:
    """A mesh of all `devices` (default: every device of the run); the axis `data` takes those that the others leave.

    Args:
      fsdp: devices that each hold a share of every parameter, and gather it where it is used; None: all devices of a
        slice that sequence and tensor leave.
      sequence: devices that share the tokens of a row, and hold shares of parameters as well.
      ring: the number of groups of those devices that pass keys and values round; the sequence / ring devices of a
        group exchange heads for tokens.
      tensor: devices that divide attention heads and the width of the feed-forward.
      slices: groups of devices joined by a slower network, which only `data` crosses; None: read from the devices.
      split: sizes of the mesh axes of a logical axis, for devices without coordinates: {"fsdp": (2, 4)}.

    Raises:
      ValueError: the axes do not fill all devices, or do not fit into a slice.
    """
    devices = list(jax.devices() if devices is None else devices)
    if min(1 if fsdp is None else fsdp, sequence, ring, tensor) < 1 or sequence % ring:
        raise ValueError(
            f"sizes of mesh axes must be at least 1, and mesh.ring must divide mesh.sequence, but {fsdp=}, "
            f"{sequence=}, {ring=}, {tensor=}; choose mesh.ring from {_divisors(max(sequence, 1))}"
        )
    by_slice = _slices(devices, slices)
    asked = MeshConfig(fsdp=fsdp, sequence=sequence, ring=ring, tensor=tensor).over(len(by_slice[0]))
    fsdp = asked.fsdp or 1
    group = fsdp * sequence * tensor
    if len(devices) % group:
        rule = "at least" if group > len(devices) else "a multiple of"
        raise ValueError(
            f"mesh.fsdp x mesh.sequence x mesh.tensor = {fsdp} x {sequence} x {tensor} = {group} needs {rule} {group} "
            f"devices, but this run has {len(devices)}; {_fitting(asked, len(devices))}, or start it on other devices"
        )
    if len(by_slice[0]) % group:
        raise ValueError(
            f"mesh.fsdp x mesh.sequence x mesh.tensor must fit into one slice, but is {group}, and each of the "
            f"{len(by_slice)} slices has {len(by_slice[0])} devices; {_fitting(asked, len(by_slice[0]))}"
        )
    sizes = dict(zip(FAMILIES, (len(by_slice[0]) // group, fsdp, ring, sequence // ring, tensor)))
    if split is not None:
        array, names = _split(np.array(by_slice), sizes, split)
    else:
        array, names = _laid_on_torus([_torus(part) for part in by_slice], sizes)
    return Mesh(array, names, axis_types=(AxisType.Auto,) * len(names))


def configured_mesh(config: MeshConfig, devices: Devices | None = None) -> Mesh:
    """The mesh that a configuration describes; raises as `make_mesh`."""
    return make_mesh(
        fsdp=config.fsdp, sequence=config.sequence, ring=config.ring, tensor=config.tensor, devices=devices
    )


def local_mesh(config: MeshConfig) -> Mesh | None:
    """The mesh of this configuration over the devices of this process, to draw on; None: the job has one device.

    Raises:
      ValueError: as `make_mesh`.
    """
    mesh = configured_mesh(config, jax.local_devices())
    return None if jax.device_count() == 1 else mesh


def _fitting(asked: MeshConfig, devices: int) -> str:
    """The flags for the mesh of this number of devices that is nearest to the one asked for."""
    tensor = math.gcd(asked.tensor, devices)
    sequence = math.gcd(asked.sequence, devices // tensor)
    rest = devices // (tensor * sequence)
    fsdp = asked.fsdp if asked.fsdp is not None and rest % asked.fsdp == 0 else rest
    sizes = {"fsdp": fsdp, "sequence": sequence, "ring": math.gcd(asked.ring, sequence), "tensor": tensor}
    flags = [f"--mesh.{name} {size}" for name, size in sizes.items() if size != getattr(asked, name)]
    return f"add {' '.join(flags)}"


def axes_of(mesh: AnyMesh, *logical: str) -> tuple[str, ...]:
    """The mesh axes of logical axes ("data", "fsdp", "sequence", "tensor"), in order, without those of one device."""
    return tuple(
        name
        for axis in logical
        for name in mesh.axis_names
        if (name == axis or name.startswith(f"{axis}_")) and mesh.shape[name] > 1
    )


def axis_size(mesh: AnyMesh, *logical: str) -> int:
    """The number of devices along logical axes: the product of their sizes."""
    return math.prod(mesh.shape[name] for name in axes_of(mesh, *logical))


def batch_sharding(mesh: AnyMesh) -> NamedSharding:
    """Rows of a batch, its first dimension, divided over data and fsdp; all other dimensions whole."""
    return NamedSharding(mesh, row_spec(mesh))


def row_spec(mesh: AnyMesh) -> PartitionSpec:
    """Rows divided over data and fsdp."""
    return PartitionSpec(axes_of(mesh, "data", "fsdp") or None)


def token_spec(mesh: AnyMesh) -> PartitionSpec:
    """Rows divided over data and fsdp, and tokens, the second dimension, over sequence."""
    return PartitionSpec(axes_of(mesh, "data", "fsdp") or None, axes_of(mesh, "sequence") or None)


def check_rows(rows: int, mesh: AnyMesh, micro_batches: int = 1) -> None:
    """Refuse a batch whose rows cannot be divided evenly over the mesh.

    Raises:
      ValueError: a micro-batch of `rows` is not a multiple of the devices along data and fsdp.
    """
    unit = axis_size(mesh, "data", "fsdp") * micro_batches
    if rows % unit:
        least = max(unit, rows - rows % unit)
        of = f" x optimizer.accumulate = {unit}" if micro_batches > 1 else ""
        raise ValueError(
            f"the rows of a batch must be a multiple of the {unit // micro_batches} devices along data and fsdp{of}, "
            f"but data.batch_rows is {rows}; set it to {least}, or choose other sizes of the mesh"
        )


def check_tokens(tokens: int, mesh: AnyMesh) -> None:
    """Refuse rows whose tokens cannot be divided evenly over the mesh.

    Raises:
      ValueError: `tokens` is not a multiple of the devices along sequence.
    """
    devices = axis_size(mesh, "sequence")
    if tokens % devices:
        raise ValueError(
            f"the tokens of a row must be a multiple of mesh.sequence={devices}, but there are {tokens}; "
            f"set data.row_tokens={tokens + -tokens % devices}, which pads the rows"
        )


def check_mesh(config: Config, mesh: AnyMesh) -> None:
    """Refuse a model or a batch that cannot be divided over the mesh, before anything is read or compiled.

    Raises:
      ValueError: rows, heads or widths are not divisible; the message names the setting.
    """
    check_rows(config.data.batch_rows, mesh, config.optimizer.accumulate)
    if config.data.row_tokens is not None:
        check_tokens(config.data.row_tokens, mesh)
    check_heads(config.model, mesh)


def check_heads(model: ModelConfig, mesh: AnyMesh) -> None:
    """Refuse a model whose heads and hidden width cannot be divided over the mesh.

    Raises:
      ValueError: they are not divisible; the message names the setting.
    """
    tensor, exchanged = axis_size(mesh, "tensor"), axis_size(mesh, "sequence_heads")
    for name, size in (
        ("model.heads", model.heads), ("model.kv_heads", model.key_heads), ("the width of the MLP", model.mlp_width)
    ):  # fmt: skip
        if size % tensor:
            raise ValueError(f"mesh.tensor={tensor} must divide {name}={size}; choose from {_divisors(size)}")
    if tensor > 1 and model.text_heads not in (None, model.heads):
        raise ValueError(
            f"mesh.tensor={tensor} divides the heads over devices, of which the first would have all that attend to "
            f"the text (model.text_heads={model.text_heads}); set mesh.tensor to 1, and mesh.fsdp to divide weights"
        )
    heads, key_heads = model.heads // tensor, model.key_heads // tensor
    sequence = axis_size(mesh, "sequence")
    remedy = f"set mesh.ring to {sequence // math.gcd(heads, key_heads, sequence)}"
    if heads % exchanged:
        raise ValueError(
            f"mesh.sequence / mesh.ring = {exchanged} devices exchange the {heads} query heads that each has, so it "
            f"must divide them; {remedy}"
        )
    if key_heads % exchanged and exchanged % key_heads:
        raise ValueError(
            f"mesh.sequence / mesh.ring = {exchanged} must divide the {key_heads} key heads that each device has, or "
            f"be a multiple of them; {remedy}"
        )


def _slices(devices: Devices, slices: int | None) -> list[list[Any]]:
    """The devices of each slice."""
    found = sorted({getattr(device, "slice_index", None) or 0 for device in devices})
    if slices is None or len(found) == slices:
        parts = [[d for d in devices if (getattr(d, "slice_index", None) or 0) == index] for index in found]
    elif len(found) == 1 and slices >= 1 and len(devices) % slices == 0:
        each = len(devices) // slices
        parts = [list(devices[start : start + each]) for start in range(0, len(devices), each)]
    else:
        raise ValueError(f"{slices=} must be the number of slices of the devices, {len(found)}, or divide their number")
    sizes = Counter(len(part) for part in parts)
    if len(sizes) != 1:
        raise ValueError(f"all slices must have as many devices, but they have {[len(part) for part in parts]}")
    return parts


def _torus(devices: Devices) -> np.ndarray:
    """The devices of a slice as an array indexed by x, y, z and core; a line of devices if they do not fill a box."""
    line = np.array(devices, object).reshape(-1, 1, 1, 1)
    if not all(len(getattr(device, "coords", None) or ()) == 3 for device in devices):
        return line
    coordinates = np.array([(*device.coords, getattr(device, "core_on_chip", 0)) for device in devices])
    coordinates -= coordinates.min(axis=0)
    shape = tuple(int(size) for size in coordinates.max(axis=0) + 1)
    if math.prod(shape) != len(devices):
        return line
    box = np.empty(shape, object)
    for coordinate, device in zip(coordinates, devices):
        box[tuple(coordinate)] = device
    return box


def _laid_on_torus(boxes: list[np.ndarray], sizes: dict[str, int]) -> tuple[np.ndarray, tuple[str, ...]]:
    """The mesh array and its axes, one for each dimension of the torus along which a logical axis runs. Inner axes join
    neighbouring chips."""
    letters = [letter for letter, size in zip("xyzc", boxes[0].shape) if size > 1] or ["x"]
    dimensions = [size for size in boxes[0].shape if size > 1] or [1]
    pieces = _pieces(tuple(dimensions), tuple(sizes.values()))  # [logical axis][dimension]
    array = np.stack(boxes).reshape(len(boxes), *(pieces[a][d] for d in range(len(dimensions)) for a in range(5)))
    order = [1 + 5 * d + a for a in range(5) for d in range(len(dimensions))]
    axes = {name: [(letters[d], pieces[a][d]) for d in range(len(dimensions))] for a, name in enumerate(sizes)}
    axes["data"].insert(0, ("slice", len(boxes)))
    return _named(array.transpose(0, *order), axes)


def _split(by_slice: np.ndarray, sizes: dict[str, int], split: Split) -> tuple[np.ndarray, tuple[str, ...]]:
    for name, parts in split.items():
        if name not in sizes or math.prod(parts) != sizes[name]:
            raise ValueError(f"split={dict(split)} must cut axes of {sizes} into parts of their product")
    axes = {
        name: [(letter, part) for letter, part in zip("xyzuvw", split.get(name, (size,)))]
        for name, size in sizes.items()
    }
    axes["data"].insert(0, ("slice", len(by_slice)))
    return _named(by_slice, axes)


def _named(array: np.ndarray, axes: dict[str, list[tuple[str, int]]]) -> tuple[np.ndarray, tuple[str, ...]]:
    """The array with one axis for each part of more than one device, and at least one for each logical axis."""
    shape, names = [], []
    for name, parts in axes.items():
        real = [(letter, size) for letter, size in parts if size > 1]
        shape += [size for _, size in real] or [1]
        names += [f"{name}_{letter}" for letter, _ in real] if len(real) > 1 else [name]
    return array.reshape(shape), tuple(names)


def _pieces(dimensions: tuple[int, ...], sizes: tuple[int, ...]) -> tuple[tuple[int, ...], ...]:
    """The number of devices that each logical axis has along each dimension of the torus: [axis][dimension].

    Chosen is the way with the fewest pieces, so that axes run along whole dimensions, whose ends are joined. Among
    equal ways, the last axes have the fewest pieces.
    """

    def ways(axis: int, left: tuple[int, ...]) -> list[tuple[tuple[int, ...], ...]]:
        if axis < 0:
            return [()] if math.prod(left) == 1 else []
        choices = itertools.product(*(_divisors(size) for size in left))
        return [
            (*before, parts)
            for parts in choices
            if math.prod(parts) == sizes[axis]
            for before in ways(axis - 1, tuple(size // part for size, part in zip(left, parts)))
        ]

    def cost(way: tuple[tuple[int, ...], ...]) -> tuple[int, ...]:
        counts = [sum(part > 1 for part in parts) for parts in way]
        return (sum(counts), *reversed(counts))

    return min(ways(len(sizes) - 1, dimensions), key=cost)


def _divisors(number: int) -> list[int]:
    return [divisor for divisor in range(1, number + 1) if number % divisor == 0]
