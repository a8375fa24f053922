"""Folders of text files as a corpus."""

from collections.abc import Iterator
from pathlib import Path

from gr_components.data.files import read_lines
from gr_components.data.records import Passage
from gr_components.errors import DataError

SUFFIXES = (".txt", ".md")


def read_text_folder(folder: str | Path, *, max_words: int | None = None) -> Iterator[Passage]:
    """
    Yield the text files of a folder and its sub-folders, sorted by path.

    A file's id is its path within the folder, its title the file name without suffix, with spaces for `_` and `-`.

    :param folder: The folder; files that do not end in `.txt` or `.md`, and hidden ones, are passed over.
    :param max_words: Cut longer files into passages of at most this many words, at line ends where possible; their ids
        get `#1`, `#2`, ... and their `meta` the `part`. None keeps files whole.
    :raises DataError: If the folder is missing or holds no text file, or a file is not UTF-8.
    """
    folder = Path(folder)
    if not folder.is_dir():
        msg = f"There is no folder '{folder}'."
        raise DataError(msg)
    if max_words is not None and max_words < 1:
        msg = f"max_words must be at least 1, got {max_words}."
        raise DataError(msg)
    paths = sorted(path for path in folder.rglob("*") if path.suffix in SUFFIXES and path.is_file())
    paths = [path for path in paths if not any(part.startswith(".") for part in path.relative_to(folder).parts)]
    if not paths:
        msg = f"The folder '{folder}' holds no file ending in {' or '.join(SUFFIXES)}."
        raise DataError(msg)
    for path in paths:
        name = path.relative_to(folder).as_posix()
        title = path.stem.replace("_", " ").replace("-", " ")
        lines = [line for _, line in read_lines(path, blank=True)]
        pieces = ["\n".join(lines).strip()] if max_words is None else list(_pieces(lines, max_words))
        if len(pieces) == 1:
            yield Passage(name, title, pieces[0], (), {"file": name})
        else:
            for part, piece in enumerate(pieces, start=1):
                yield Passage(f"{name}#{part}", title, piece, (), {"file": name, "part": part})


def _pieces(lines: list[str], max_words: int) -> Iterator[str]:
    """Group lines up to `max_words` words; a longer line is cut between words."""
    current: list[str] = []
    size = 0
    for line in lines:
        words = line.split()
        if current and size + len(words) > max_words:
            yield "\n".join(current).strip()
            current, size = [], 0
        while len(words) > max_words:
            yield " ".join(words[:max_words])
            words = words[max_words:]
            line = " ".join(words)
        current.append(line)
        size += len(words)
    if current or not lines:
        yield "\n".join(current).strip()
