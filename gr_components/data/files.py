"""
Text files, plain or compressed (`.gz`, `.xz`), read line by line with line numbers and written atomically.

Compressed output is deterministic: the same content gives the same bytes, so that hashes and version control work.
"""

import codecs
import gzip
import json
import lzma
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, cast

from gr_components.errors import DataError

_MAX_SHOWN = 120
_BLOCK = 1 << 20


def read_lines(path: str | Path, *, blank: bool = False) -> Iterator[tuple[int, str]]:
    """
    Yield the lines of a UTF-8 file with their numbers.

    :param path: The file; `.gz` and `.xz` are decompressed.
    :param blank: Whether blank lines are yielded too.
    :returns: Pairs of line number, from 1, and the line without its end.
    :raises DataError: If the file is missing, is not UTF-8, or its compressed data are damaged.
    """
    path = Path(path)
    number = 0
    with _reading(path, lambda: f"line {number}") as file:
        for number, raw in enumerate(file, start=1):
            line = _decode(raw, path, number).rstrip("\r\n")
            if number == 1:
                line = line.removeprefix("\ufeff")
            if blank or line.strip():
                yield number, line


def read_blocks(path: str | Path, size: int = _BLOCK) -> Iterator[str]:
    """
    Yield the text of a UTF-8 file in blocks that end anywhere, for files whose lines may be as long as the file.

    :param path: The file; `.gz` and `.xz` are decompressed.
    :param size: Bytes of a block.
    :raises DataError: As `read_lines`.
    """
    path = Path(path)
    decoder, count = codecs.getincrementaldecoder("utf-8-sig")(), 0
    with _reading(path, lambda: f"byte {count}") as file:
        raw = b"?"
        while raw:
            raw = file.read(size)
            try:
                text = decoder.decode(raw, final=not raw)
            except UnicodeDecodeError as error:
                msg = f"{path}: not UTF-8 ({error.reason} near byte {count + error.start}). Convert the file to UTF-8."
                raise DataError(msg) from error
            count += len(raw)
            if text:
                yield text


def read_objects(path: str | Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """
    Yield the JSON objects of a JSONL file with their line numbers.

    :param path: The file.
    :raises DataError: If a line is not a JSON object.
    """
    for number, line in read_lines(path):
        try:
            data = json.loads(line)
        except json.JSONDecodeError as error:
            msg = f"{path}, line {number}: not valid JSON ({error.msg} at column {error.colno}): {shown(line)}"
            raise DataError(msg) from error
        if not isinstance(data, dict):
            msg = f"{path}, line {number}: expected a JSON object, got {type(data).__name__}: {shown(line)}"
            raise DataError(msg)
        yield number, data


def read_columns(path: str | Path, separator: str | None = "\t") -> Iterator[tuple[int, list[str]]]:
    """
    Yield the columns of a separated file with their line numbers.

    :param path: The file.
    :param separator: Between columns; None for any white space.
    """
    for number, line in read_lines(path):
        yield number, line.split(separator)


@contextmanager
def writing(path: str | Path) -> Iterator[IO[str]]:
    """
    Open a text file for writing; it gets its name only when the block ends without an error.

    :param path: The file; `.gz` and `.xz` are compressed, without time or name inside.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as raw:
            with _compressing(raw, path.suffix) as binary:
                text = _TextWriter(binary)
                yield cast(IO[str], text)
            raw.flush()
            os.fsync(raw.fileno())
        os.chmod(name, 0o666 & ~_umask())
        os.replace(name, path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def write_objects(path: str | Path, objects: Iterable[Mapping[str, Any]]) -> int:
    """
    Write JSON objects, one a line.

    :param path: The file.
    :param objects: Plain values.
    :returns: How many were written.
    """
    count = 0
    with writing(path) as file:
        for data in objects:
            file.write(json.dumps(data, ensure_ascii=False) + "\n")
            count += 1
    return count


def shown(value: object) -> str:
    """
    Return a value as an error message shows it: quoted, and cut when long.

    :param value: Any value.
    """
    text = repr(value)
    return text if len(text) <= _MAX_SHOWN else text[: _MAX_SHOWN - 1] + "…"


class _TextWriter:
    """Writes UTF-8 to a binary file. `io.TextIOWrapper` would close the file that `writing` still has to sync."""

    def __init__(self, binary: IO[bytes]) -> None:
        self._binary = binary

    def write(self, text: str) -> int:
        self._binary.write(text.encode("utf-8"))
        return len(text)


@contextmanager
def _reading(path: Path, place: Callable[[], str]) -> Iterator[IO[bytes]]:
    """Open a file, and turn what goes wrong while it is read into errors that say how far it could be read."""
    try:
        with _open_binary(path) as file:
            yield file
    except (FileNotFoundError, IsADirectoryError) as error:
        msg = f"There is no file '{path}'."
        raise DataError(msg) from error
    except PermissionError as error:
        msg = f"'{path}' may not be read: {error.strerror}."
        raise DataError(msg) from error
    except (EOFError, gzip.BadGzipFile, lzma.LZMAError, OSError) as error:
        msg = f"'{path}' cannot be read beyond {place()}: {error}. It may be cut off or of another format."
        raise DataError(msg) from error


def _open_binary(path: Path) -> IO[bytes]:
    if path.suffix == ".gz":
        return cast(IO[bytes], gzip.open(path, "rb"))
    if path.suffix == ".xz":
        return cast(IO[bytes], lzma.open(path, "rb"))
    return path.open("rb")


@contextmanager
def _compressing(raw: IO[bytes], suffix: str) -> Iterator[IO[bytes]]:
    if suffix == ".gz":
        with gzip.GzipFile(filename="", mode="wb", fileobj=raw, mtime=0, compresslevel=9) as file:
            yield cast(IO[bytes], file)
    elif suffix == ".xz":
        with lzma.LZMAFile(raw, "wb") as file:
            yield cast(IO[bytes], file)
    else:
        yield raw


def _decode(raw: bytes, path: Path, number: int) -> str:
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        bad = raw[error.start : error.end]
        msg = f"{path}, line {number}: not UTF-8 (byte {bad!r} at position {error.start}). Convert the file to UTF-8."
        raise DataError(msg) from error


def _umask() -> int:
    current = os.umask(0)
    os.umask(current)
    return current
