"""
Immutable folders of files with a manifest: how every index of this project lies on disk.

A folder is written under a temporary name beside its final one, its files are listed with sizes and SHA-256 in
`manifest.json`, everything is flushed to the disk, and only then the folder gets its name. So a folder with its final
name is complete, and a crash leaves at most a temporary sibling behind (`is_temporary` recognises it).

`read_manifest` checks format, version, the manifest's own digest and the size of each file; with `verify="full"` also
the checksums.
"""

import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from gr_components.errors import IndexFormatError, SearchIndexError

MANIFEST = "manifest.json"
Verify = Literal["header", "full"]

_TEMPORARY = ".partial-"
_BLOCK = 1 << 20


@dataclass(frozen=True)
class FileEntry:
    """
    One file of an index folder.

    :param size: Bytes.
    :param sha256: Hexadecimal checksum of the whole file.
    """

    size: int
    sha256: str


@dataclass(frozen=True)
class Manifest:
    """
    What an index folder holds.

    :param format: Name of the format, such as `gr.suffix`.
    :param version: Version of the format.
    :param files: Each file by its name relative to the folder.
    :param info: Whatever the index needs to know about itself, plain JSON values.
    """

    format: str
    version: int
    files: Mapping[str, FileEntry]
    info: Mapping[str, Any] = field(default_factory=dict)

    @property
    def digest(self) -> str:
        """SHA-256 of the canonical manifest: names the content of the whole folder."""
        return hashlib.sha256(_canonical(self._plain())).hexdigest()

    @property
    def size(self) -> int:
        """Bytes of all files together, the manifest excluded."""
        return sum(entry.size for entry in self.files.values())

    def _plain(self) -> dict[str, Any]:
        files = {name: {"size": entry.size, "sha256": entry.sha256} for name, entry in self.files.items()}
        return {"format": self.format, "version": self.version, "files": files, "info": dict(self.info)}

    def write(self, folder: Path) -> None:
        """
        Write `manifest.json`.

        :param folder: The folder that is described.
        """
        plain = {**self._plain(), "digest": self.digest}
        (folder / MANIFEST).write_text(json.dumps(plain, indent=2, sort_keys=True) + "\n", encoding="utf-8")


@contextmanager
def publish(path: Path, *, format: str, version: int, info: Mapping[str, Any]) -> Iterator[Path]:
    """
    Write an index folder so that it appears complete or not at all.

    The body writes its files into the yielded temporary folder; sub-folders are allowed. `info` is read when the body
    has ended, so the body may still add to it. When the body raises, the temporary folder is removed.

    ```python
    with publish(path, format="gr.example", version=1, info={"documents": 3}) as folder:
        save_array(folder, "numbers", numbers_D)
    ```

    :param path: Final name of the folder; its parent is created.
    :param format: Name of the format.
    :param version: Version of the format.
    :param info: Plain JSON values for the manifest.
    :raises SearchIndexError: If `path` exists: index folders are never overwritten.
    """
    if path.exists():
        msg = f"'{path}' exists already and index folders are never overwritten. Remove it or choose another name."
        raise SearchIndexError(msg)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}{_TEMPORARY}{uuid.uuid4().hex}")
    temporary.mkdir()
    try:
        yield temporary
        names = sorted(str(p.relative_to(temporary)) for p in temporary.rglob("*") if p.is_file())
        files = {name: FileEntry((temporary / name).stat().st_size, sha256(temporary / name)) for name in names}
        Manifest(format, version, files, dict(info)).write(temporary)
        for folder, _, entries in os.walk(temporary, topdown=False):
            for name in entries:
                _flush(Path(folder) / name)
            _flush(Path(folder))
        temporary.rename(path)
        _flush(path.parent)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def read_manifest(path: Path, *, format: str, version: int, verify: Verify = "header") -> Manifest:
    """
    Read and check the manifest of an index folder.

    :param path: The folder.
    :param format: The format that the caller can read.
    :param version: The version that the caller can read.
    :param verify: `header` checks the manifest and the size of each file, `full` also the checksums.
    :raises IndexFormatError: If anything is missing, damaged or of another format.
    """
    manifest = _load(path)
    if (manifest.format, manifest.version) != (format, version):
        msg = (
            f"'{path}' holds {manifest.format!r} version {manifest.version}, this program reads {format!r} version "
            f"{version}. Build the index again."
        )
        raise IndexFormatError(msg)
    for name, entry in manifest.files.items():
        file = path / name
        size = file.stat().st_size if file.is_file() else None
        if size != entry.size:
            found = "missing" if size is None else f"{size} bytes"
            msg = f"'{file}' is {found}, its manifest says {entry.size} bytes. Build the index again."
            raise IndexFormatError(msg)
        if verify == "full" and sha256(file) != entry.sha256:
            msg = f"'{file}' does not have the checksum of its manifest: it is damaged. Build the index again."
            raise IndexFormatError(msg)
    return manifest


def save_array(folder: Path, name: str, array: npt.NDArray[Any]) -> None:
    """
    Write an array as `<name>.npy`.

    :param folder: An existing folder.
    :param name: File name without its ending.
    :param array: Any numeric or boolean array.
    """
    np.save(folder / f"{name}.npy", array, allow_pickle=False)


def open_array(folder: Path, name: str, *, mmap: bool = True) -> npt.NDArray[Any]:
    """
    Open an array that `save_array` wrote.

    :param folder: The index folder.
    :param name: File name without its ending.
    :param mmap: Whether to map the file read-only instead of reading it; empty arrays are always read.
    :raises IndexFormatError: If the file is missing or not such an array.
    """
    file = folder / f"{name}.npy"
    try:
        if mmap:
            try:
                return np.load(file, mmap_mode="r", allow_pickle=False)
            except ValueError as error:
                if "empty" not in str(error):  # an empty file region cannot be mapped
                    raise
        return np.load(file, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        msg = f"'{file}' cannot be read as an array: {error}. Build the index again."
        raise IndexFormatError(msg) from error


def is_temporary(path: Path) -> bool:
    """
    Tell whether a folder is the unfinished work of `publish`.

    :param path: A folder.
    """
    return _TEMPORARY in path.name


def sha256(file: Path) -> str:
    """
    Hexadecimal SHA-256 of a file.

    :param file: The file.
    """
    digest = hashlib.sha256()
    with file.open("rb") as stream:
        while block := stream.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()


def _load(path: Path) -> Manifest:
    file = path / MANIFEST
    try:
        plain = json.loads(file.read_text(encoding="utf-8"))
        files = {name: FileEntry(entry["size"], entry["sha256"]) for name, entry in plain["files"].items()}
        manifest = Manifest(plain["format"], plain["version"], files, plain["info"])
        digest = plain["digest"]
    except FileNotFoundError as error:
        msg = f"'{path}' has no {MANIFEST}: it is no index, or its build did not finish. Build the index again."
        raise IndexFormatError(msg) from error
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        msg = f"'{file}' cannot be read: {error}. Build the index again."
        raise IndexFormatError(msg) from error
    if digest != manifest.digest:
        msg = f"'{file}' was changed after it was written (its digest is wrong). Build the index again."
        raise IndexFormatError(msg)
    return manifest


def _canonical(plain: dict[str, Any]) -> bytes:
    return json.dumps(plain, sort_keys=True, separators=(",", ":")).encode()


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
