"""Files that npm and Debian packages ship, fetched by the ordinary client of each.

The client downloads and verifies (npm against the registry's checksum and ours, apt against the signed index); nothing
is installed, and no script of a package runs.
"""

import json
import subprocess
import tarfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple


class NpmPackage(NamedTuple):
    """A version of an npm package, and what its archive must hash to."""

    name: str
    version: str
    integrity: str

    def __str__(self) -> str:
        return f"npm {self.name} {self.version}"


def fetch_npm(package: NpmPackage, folder: Path) -> Path:
    """Unpack an npm package under `folder`; returns where its package.json lies.

    Raises:
      ValueError: npm is missing or fails, or the archive is not the expected one.
    """
    spec = f"{package.name}@{package.version}"
    printed = run(["npm", "pack", spec, "--json", "--pack-destination", str(folder)], "npm (Debian: apt install npm)")
    entry = _first_json(printed)
    if entry["integrity"] != package.integrity:
        raise ValueError(f"{spec} must have the checksum {package.integrity}, but has {entry['integrity']}")
    return unpacked_npm(folder / entry["filename"], folder / package.name.replace("/", "+"))


def unpacked_npm(archive: Path, folder: Path) -> Path:
    """Unpack what `npm pack` made into `folder`; returns where its package.json lies."""
    with tarfile.open(archive) as opened:
        opened.extractall(folder, filter="data")
    return folder / "package"


def fetch_debian(packages: Sequence[str], folder: Path) -> Path:
    """Unpack Debian packages under `folder`, without installing them; returns the folder with all their files.

    Raises:
      ValueError: apt is missing or fails.
    """
    target = folder / packages[0]
    target.mkdir(parents=True)
    run(["apt-get", "download", *packages], "apt-get, which Debian and Ubuntu have", cwd=target)
    for archive in target.glob("*.deb"):
        run(["dpkg-deb", "--extract", str(archive), str(target)], "dpkg-deb")
    return target


def run(
    command: Sequence[str], needs: str, *, cwd: Path | None = None, environment: Mapping[str, str] | None = None
) -> str:
    """What a program prints; `needs` says how to get it.

    Raises:
      ValueError: it is missing, or it fails.
    """
    try:
        done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True)
    except FileNotFoundError:
        raise ValueError(f"{command[0]} is not installed; this data set needs {needs}") from None
    if done.returncode:
        raise ValueError(f"`{' '.join(command)}` failed: {done.stderr.strip()[-500:]}")
    return done.stdout


def _first_json(printed: str) -> dict[str, str]:
    """What `npm pack --json` prints: a list of one object."""
    [entry] = json.loads(printed)
    return entry
