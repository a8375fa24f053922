"""What `gr index` reads: corpus files and folders of text files, one document at a time."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from haystack import Document

from gr_components.data import read_corpus, read_text_folder
from gr_components.data.files import read_lines
from gr_components.data.haystack import to_document
from gr_components.errors import DataError

_CORPUS = (".jsonl", ".jsonl.gz", ".jsonl.xz", ".json.gz", ".ndjson")


@dataclass(frozen=True)
class Source:
    """
    A corpus file or a folder of text files.

    :param path: Where it is.
    :param max_words: Text files are cut into passages of at most this many words.
    """

    path: Path
    max_words: int

    def documents(self) -> Iterator[Document]:
        """
        Yield its documents.

        :raises DataError: On malformed input; the message names file and line.
        """
        passages = (
            read_text_folder(self.path, max_words=self.max_words) if self.path.is_dir() else read_corpus(self.path)
        )
        for passage in passages:
            yield to_document(passage)

    def lines(self) -> int | None:
        """Return the number of documents of a corpus file, or None for a folder."""
        return None if self.path.is_dir() else sum(1 for _ in read_lines(self.path))


def open_sources(paths: Sequence[Path], max_words: int) -> list[Source]:
    """
    Check that all paths can be read before anything is written.

    :param paths: Corpus files and folders.
    :param max_words: Text files are cut into passages of at most this many words.
    :raises DataError: If a path is missing or of another kind.
    """
    for path in paths:
        if not path.exists():
            msg = f"There is no file or folder '{path}'."
            raise DataError(msg)
        if path.is_file() and not path.name.endswith(_CORPUS):
            msg = (
                f"'{path}' is neither a corpus ({', '.join(_CORPUS)}) nor a folder of text files."
                f" For single text files, give their folder: {path.parent}"
            )
            raise DataError(msg)
    return [Source(path, max_words) for path in paths]


def total(sources: Sequence[Source]) -> int | None:
    """
    Return about how many documents there are, or None if that is unknown without reading them.

    :param sources: What `open_sources` returned.
    """
    counts = [source.lines() for source in sources]
    known = [count for count in counts if count is not None]
    return sum(known) if len(known) == len(counts) else None


def unique(sources: Sequence[Source]) -> Iterator[Document]:
    """
    Yield the documents of all sources.

    :param sources: What `open_sources` returned.
    :raises DataError: If two sources have a document of the same id; each source checks its own.
    """
    seen: dict[str, int] = {}
    for number, source in enumerate(sources):
        for document in source.documents():
            first = seen.setdefault(document.id, number)
            if first != number:
                msg = (
                    f"The id {document.id!r} is in '{sources[first].path}' and in '{source.path}'. Ids must be unique."
                )
                raise DataError(msg)
            yield document
