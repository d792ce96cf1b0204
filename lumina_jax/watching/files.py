"""The files in the folder of a run, local or in a bucket, as they are at this moment.

In: a folder, or a URL such as gs://bucket/runs/emoji. Out: names, whole files, and ends of files. fsspec reads them. Of
a bucket it would remember listings, in which no file grows and no new one appears, so it is told not to. Whatever the
client of a bucket raises is an OSError here. Nothing here writes.
"""

import contextlib
from collections.abc import Iterator

import fsspec

from lumina_jax.training.checkpoint import located


class RunFiles:
    """The files of one folder.

    Raises:
      ValueError: its URL cannot be read, or the package that reads it is missing.
    """

    def __init__(self, folder: str):
        self.folder = str(located(folder))
        scheme, mark, _ = self.folder.partition("://")
        with self._reported(""):
            self._system = fsspec.filesystem(scheme if mark else "file", use_listings_cache=False)

    def has(self, name: str) -> bool:
        """Raises OSError: the storage does not say."""
        with self._reported(name):
            try:
                self._system.info(self._path(name))  # exists() says no where the storage does not answer
            except FileNotFoundError:
                return False
            return True

    def content(self, name: str) -> bytes | None:
        """A whole file; None: there is none. Raises OSError: it cannot be read."""
        with self._reported(name):
            try:
                content: bytes = self._system.cat_file(self._path(name))
            except FileNotFoundError:
                return None
            return content

    def end(self, name: str, start: int) -> bytes | None:
        """A file from an offset in bytes on, without what is before; None: there is no file.

        Raises:
          OSError: it cannot be read.
        """
        with self._reported(name):
            try:
                with self._system.open(self._path(name), "rb") as opened:
                    opened.seek(start)
                    content: bytes = opened.read()
            except FileNotFoundError:
                return None
            return content

    def names(self, folder: str) -> list[str]:
        """The names of what is in a folder in this one. Raises OSError: it cannot be read."""
        with self._reported(folder):
            try:
                paths = self._system.ls(self._path(folder), detail=False)
            except FileNotFoundError:
                return []
            return [path.rstrip("/").rpartition("/")[2] for path in paths]

    def _path(self, name: str) -> str:
        return f"{self.folder}/{name}"

    @contextlib.contextmanager
    def _reported(self, name: str) -> Iterator[None]:
        """Name the file in an error of the storage, whose clients have classes of their own for errors."""
        try:
            yield
        except Exception as error:
            if "://" not in self.folder:
                raise
            reason = " ".join(f"{error}".split()) or type(error).__name__
            raise OSError(
                f"{self._path(name)} cannot be read ({reason}); check the URL, the network and the credentials "
                "(docs/watching.md says which)"
            ) from error
