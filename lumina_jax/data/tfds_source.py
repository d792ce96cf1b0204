"""Any prepared tensorflow-datasets builder, read without tensorflow.

In: the name of a builder, and the names of its features for picture, caption and label. Out: records, by index.
"""

from typing import Any

import tensorflow_datasets as tfds

from lumina_jax.data.example import BadSample, Record, described, record_of


class TfdsSource:
    """One split of a builder.

    A caption is a text feature, or the name of the class if `caption_key` is a ClassLabel. A key that is None is not
    read. Pictures stay encoded until they are prepared.

    Raises:
      ValueError: unknown builder, split or feature, or data that were not prepared for random access.
    """

    def __init__(
        self,
        name: str,
        split: str,
        *,
        image_key: str,
        caption_key: str | None,
        label_key: str | None,
        data_dir: str | None,
    ) -> None:
        self._repr = f"TfdsSource({name!r}, {split!r}, {image_key!r}, {caption_key!r}, {label_key!r}, {data_dir!r})"
        self._name, self._split = name, split
        self._image_key, self._caption_key, self._label_key = image_key, caption_key, label_key
        try:
            builder = tfds.builder(name, data_dir=data_dir, try_gcs=False)
        except Exception as error:  # whatever its builders, its files and its other catalogues raise
            raise ValueError(
                f"data.path={name!r} is no builder of tensorflow-datasets that can be opened: {_first_line(error)}"
            ) from error
        features = builder.info.features or {}
        for key in filter(None, (image_key, caption_key, label_key)):
            if key not in features:
                raise ValueError(
                    f"{name} has no feature {key!r}, only {sorted(features)}; see data.image_key, caption_key"
                )
        class_label = isinstance(features[caption_key], tfds.features.ClassLabel) if caption_key else False
        self._class_names = features[caption_key].names if class_label else None
        self._data = _open(builder, split, image_key)
        used = f"{builder.info.full_name} {split} {len(self._data)} {image_key} {caption_key} {label_key}"
        self.contents = described(len(self._data), used)

    def __len__(self) -> int:
        return len(self._data)

    def __getitem__(self, index: int) -> Record | BadSample:
        name = f"{self._name} {self._split} {index}"
        try:
            item = self._data[index]
            caption = None if self._caption_key is None else self._caption(item[self._caption_key])
        except Exception as error:  # whatever a broken shard or the features of a builder raise
            return BadSample(name, f"the sample cannot be read ({type(error).__name__}: {error})")
        label = None if self._label_key is None else item[self._label_key]
        return record_of(name, item[self._image_key], caption, label)

    def __repr__(self) -> str:
        return self._repr

    def _caption(self, value: Any) -> Any:
        if self._class_names is not None:
            return self._class_names[int(value)].replace("_", " ")
        return value.decode() if isinstance(value, bytes) else value


def _open(builder: tfds.core.DatasetBuilder, split: str, image_key: str) -> Any:
    is_picture = isinstance(builder.info.features[image_key], tfds.features.Image)
    decoders = {image_key: tfds.decode.SkipDecoding()} if is_picture else None
    try:
        return builder.as_data_source(split, decoders=decoders)
    except (AssertionError, NotImplementedError, FileNotFoundError) as error:
        raise ValueError(
            f"{builder.info.full_name} is not prepared for random access in {builder.data_dir} "
            f"({_first_line(error)}); prepare it with "
            f"tfds.builder({builder.info.full_name!r}, file_format='array_record').download_and_prepare()"
        ) from error


def _first_line(error: BaseException) -> str:
    return str(error).split("\n", 1)[0] or type(error).__name__
