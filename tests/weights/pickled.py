"""Files as torch.save writes them, made without torch."""

import pickle
import zipfile

import numpy as np

STORAGES = {"float32": "FloatStorage", "float16": "HalfStorage", "int64": "LongStorage"}


def save_pickled(path, value):
    """A file of PyTorch with nested dictionaries, whose arrays become its tensors."""
    with zipfile.ZipFile(path, "w") as file:
        with file.open("archive/data.pkl", "w") as stream:
            storages = _dump(stream, value)
        file.writestr("archive/byteorder", "little")
        for index, numbers in enumerate(storages):
            file.writestr(f"archive/data/{index}", numbers.tobytes())
    return path


def save_legacy(path, value, *, protocol=1001, is_little=True):
    """The same, as PyTorch before 1.6 writes it."""
    with path.open("wb") as file:
        for head in (0x1950A86A20F9469CFC6C, protocol, {"protocol_version": protocol, "little_endian": is_little}):
            pickle.dump(head, file, protocol=2)
        storages = _dump(file, value, last=(None,))
        pickle.dump([str(index) for index in range(len(storages))], file, protocol=2)
        for numbers in storages:
            file.write(len(numbers).to_bytes(8, "little") + numbers.tobytes())
    return path


def _dump(stream, value, last=()):
    """Pickle dictionaries of arrays; returns the storages of the arrays, whose strides are kept.

    Args:
      last: what the description of a storage ends in.
    """
    storages = []

    class Pickler(pickle._Pickler):
        def save(self, found, save_persistent_id=True):
            if not isinstance(found, np.ndarray):
                return super().save(found, save_persistent_id)
            storages.append(found.ravel("K"))
            self.write(b"ctorch._utils\n_rebuild_tensor_v2\n" + pickle.MARK + pickle.MARK)
            self.save("storage")
            self.write(b"ctorch\n" + STORAGES[found.dtype.name].encode() + b"\n")
            for part in (str(len(storages) - 1), "cpu", found.size, *last):
                self.save(part)
            self.write(pickle.TUPLE + pickle.BINPERSID)
            strides = tuple(step // found.itemsize for step in found.strides)
            for part in (0, found.shape, strides, False, {}):
                self.save(part)
            self.write(pickle.TUPLE + pickle.REDUCE)
            return None

    Pickler(stream, protocol=2).dump(value)
    return storages
