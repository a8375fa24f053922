"""
Suffix segments: immutable folders that find every token sequence of a set of documents, with its documents.

Each *field* (body, title, ...) is one text: the documents' entries in order, a boundary token before each entry and one
at the end. On disk, per field: the text, its suffix array, a table of frequent ranges
(`suffix_kernels.build_hot_table`) and what finds the document of a position; about 7 bytes per token for large texts.

Shapes: N text length, D documents.
"""

from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from gr_components.errors import DataError, IndexFormatError, TokenizerMismatchError
from gr_components.indexes.candidates import Int64
from gr_components.indexes.formats import SUFFIX
from gr_components.indexes.manifest import Manifest, Verify, open_array, publish, read_manifest, save_array
from gr_components.indexes.suffix_array import MAX_LENGTH, suffix_array
from gr_components.indexes.suffix_kernels import BLOCK_SHIFT, SuffixArrays, build_hot_table
from gr_components.progress import Reporter, Silent, Task

FORMAT, VERSION = SUFFIX

_SMALL_TEXT = 4_000_000
_HOT_SMALL, _HOT_LARGE = 64, 1024


class IndexedDocument(Protocol):
    """
    A tokenized document (`gr_components.decoding.grammar.TokenizedDocument`).

    `number` is the store's number of it; `entries` holds, for each field, its token sequences.
    """

    @property
    def number(self) -> int:
        """The store's document number."""
        ...

    @property
    def entries(self) -> Mapping[str, Sequence[Sequence[int]]]:
        """Token sequences of each field."""
        ...


@dataclass(frozen=True)
class FieldText:
    """
    One field of a segment.

    :param arrays: Text, suffix array and hot table.
    :param starts_D1: Where each document's entries begin in the text; document d ends where d + 1 begins.
    :param entries_D: Number of entries of each document; those without tokens are not counted.
    :param blocks: Document at the start of every block of 2**BLOCK_SHIFT positions.
    """

    arrays: SuffixArrays
    starts_D1: npt.NDArray[np.uint32]
    entries_D: npt.NDArray[np.uint32]
    blocks: npt.NDArray[np.uint32]

    def tokens(self, document: int) -> npt.NDArray[Any]:
        """
        Return the text of a document in this field, each entry preceded by a boundary token.

        :param document: Its place in the segment.
        """
        return self.arrays.text_N[int(self.starts_D1[document]) : int(self.starts_D1[document + 1])]


class SuffixSegment:
    """
    An opened segment; the arrays are mapped from disk and read-only.

    Use `build` and `open`.

    :param path: The folder.
    :param manifest: Its manifest.
    :param numbers_D: The store's document numbers, in the order of the texts.
    :param fields: The searchable texts by field.
    """

    def __init__(self, path: Path, manifest: Manifest, numbers_D: Int64, fields: dict[str, FieldText]) -> None:
        self.path = path
        self.manifest = manifest
        self.numbers_D = numbers_D
        self.fields = fields
        self.boundary = int(manifest.info["boundary"])
        self.vocabulary_size = int(manifest.info["vocabulary_size"])
        self.tokenizer_fingerprint = str(manifest.info["tokenizer_fingerprint"])

    @classmethod
    def build(
        cls,
        path: str | Path,
        documents: Iterable[IndexedDocument],
        *,
        fields: Sequence[str],
        boundary: int,
        tokenizer_fingerprint: str,
        vocabulary_size: int,
        hot_threshold: int | None = None,
        info: Mapping[str, Any] | None = None,
        report: Reporter = Silent(),  # noqa: B008 - stateless
    ) -> "SuffixSegment":
        """
        Index documents and write the segment; the folder appears complete or not at all.

        :param path: Folder to make; must not exist.
        :param documents: Tokenized documents with distinct numbers.
        :param fields: Names of the fields; others in the documents are ignored.
        :param boundary: Token that separates entries.
        :param tokenizer_fingerprint: Which tokenizer made the tokens.
        :param vocabulary_size: All tokens are smaller than this.
        :param hot_threshold: Ranges with more rows get a list of their next tokens; by default 64 for texts of up to
            4 million tokens (faster), 1024 for larger ones (smaller).
        :param info: Further plain values for the manifest.
        :param report: Where progress goes.
        :raises DataError: If a number repeats, a token is out of range or a field is too long for one segment.
        :raises SearchIndexError: If the folder exists.
        """
        path = Path(path)
        texts = _collect(documents, fields, boundary, vocabulary_size, report)
        described: dict[str, Any] = {
            **(info or {}),
            "fields": list(fields),
            "boundary": boundary,
            "vocabulary_size": vocabulary_size,
            "tokenizer_fingerprint": tokenizer_fingerprint,
            "documents": len(texts.numbers),
            "tokens": {field: len(text.tokens) for field, text in texts.fields.items()},
        }
        with publish(path, format=FORMAT, version=VERSION, info=described) as folder:
            save_array(folder, "numbers", np.array(texts.numbers, dtype=np.int64))
            with Task(report, "suffix arrays", len(fields)) as task:
                for field in fields:
                    _write_field(folder, field, texts.fields[field], boundary, vocabulary_size, hot_threshold)
                    task.advance()
        return cls.open(path)

    @classmethod
    def open(
        cls, path: str | Path, *, verify: Verify = "header", tokenizer_fingerprint: str | None = None
    ) -> "SuffixSegment":
        """
        Open a segment; large arrays are mapped, not read.

        :param path: The folder.
        :param verify: `header` checks the manifest and the files' sizes, `full` also every checksum.
        :param tokenizer_fingerprint: The tokenizer that queries will be made with, if known.
        :raises IndexFormatError: If a file is missing, truncated, damaged or of another version.
        :raises TokenizerMismatchError: If the segment was made with another tokenizer.
        """
        path = Path(path)
        manifest = read_manifest(path, format=FORMAT, version=VERSION, verify=verify)
        made_with = manifest.info["tokenizer_fingerprint"]
        if tokenizer_fingerprint is not None and made_with != tokenizer_fingerprint:
            msg = (
                f"The index '{path}' was built with the tokenizer {made_with[:12]}, the model uses "
                f"{tokenizer_fingerprint[:12]}. Build the index again with this model."
            )
            raise TokenizerMismatchError(msg)
        numbers_D = open_array(path, "numbers", mmap=False)
        fields = {field: _open_field(path, field, manifest, len(numbers_D)) for field in manifest.info["fields"]}
        return cls(path, manifest, numbers_D, fields)

    def verify(self) -> None:
        """
        Read every file and compare checksums.

        :raises IndexFormatError: If anything differs from the manifest.
        """
        read_manifest(self.path, format=FORMAT, version=VERSION, verify="full")

    @property
    def num_documents(self) -> int:
        """Number of documents, deleted ones included."""
        return len(self.numbers_D)

    @property
    def num_tokens(self) -> int:
        """Tokens of all fields, boundaries included."""
        return sum(len(text.arrays.text_N) for text in self.fields.values())


class _Texts:
    """What is collected from the documents before sorting: 4 bytes per token."""

    def __init__(self, fields: Sequence[str]) -> None:
        self.numbers: list[int] = []
        self.fields = {field: _Text() for field in fields}


class _Text:
    def __init__(self) -> None:
        self.tokens = array("I")
        self.starts = array("I")
        self.entries = array("I")


def _collect(
    documents: Iterable[IndexedDocument], fields: Sequence[str], boundary: int, vocabulary_size: int, report: Reporter
) -> _Texts:
    for field in fields:
        if not field.isidentifier():
            msg = f"Field names become file names and must be plain words, got {field!r}."
            raise DataError(msg)
    texts, seen = _Texts(fields), set[int]()
    with Task(report, "collect tokens") as task:
        for document in documents:
            if document.number in seen:
                msg = f"Document number {document.number} was given twice to one index segment."
                raise DataError(msg)
            seen.add(document.number)
            texts.numbers.append(document.number)
            for field in fields:
                _append(texts.fields[field], document.entries.get(field, ()), boundary, document.number)
            task.advance()
    for field, text in texts.fields.items():
        text.starts.append(len(text.tokens))
        text.tokens.append(boundary)
        largest = int(np.frombuffer(text.tokens, dtype=np.uint32).max())
        if largest >= vocabulary_size:
            msg = f"Field {field!r} holds the token {largest}; the vocabulary has {vocabulary_size} tokens."
            raise DataError(msg)
    return texts


def _append(text: _Text, entries: Iterable[Sequence[int]], boundary: int, number: int) -> None:
    text.starts.append(len(text.tokens))
    filled = [entry for entry in entries if len(entry)]
    text.entries.append(len(filled))
    for entry in filled:
        text.tokens.append(boundary)
        try:
            text.tokens.extend(entry)
        except (OverflowError, TypeError) as error:
            msg = f"Document number {number} has a token that is no 32-bit token id: {error}."
            raise DataError(msg) from error
    if len(text.tokens) > MAX_LENGTH:
        msg = f"One segment holds at most {MAX_LENGTH} tokens per field. Build several smaller segments."
        raise DataError(msg)


def _write_field(
    folder: Path, field: str, text: _Text, boundary: int, vocabulary_size: int, hot_threshold: int | None
) -> None:
    dtype = np.uint16 if vocabulary_size <= 1 << 16 else np.uint32
    text_N = np.frombuffer(text.tokens, dtype=np.uint32).astype(dtype)
    suffixes_N = suffix_array(text_N).view(np.uint32)
    if hot_threshold is None:
        hot_threshold = _HOT_SMALL if len(text_N) <= _SMALL_TEXT else _HOT_LARGE
    hot = build_hot_table(_frozen(text_N), _frozen(suffixes_N), boundary, hot_threshold)
    starts_D1 = np.frombuffer(text.starts, dtype=np.uint32)
    # The document whose span holds a block's first position: the last one that starts at or before it.
    block_starts = np.arange(0, len(text_N), 1 << BLOCK_SHIFT)
    blocks = np.maximum(np.searchsorted(starts_D1, block_starts, side="right") - 1, 0).astype(np.uint32)
    entries_D = np.frombuffer(text.entries, dtype=np.uint32) if len(text.entries) else np.empty(0, np.uint32)
    arrays = SuffixArrays(text_N, suffixes_N, *hot)
    for name, values in _named(arrays, starts_D1, entries_D, blocks):
        save_array(folder, f"{field}.{name}", values)


def _named(
    arrays: SuffixArrays, starts_D1: npt.NDArray[Any], entries_D: npt.NDArray[Any], blocks: npt.NDArray[Any]
) -> Iterator[tuple[str, npt.NDArray[Any]]]:
    yield from zip(_ARRAY_NAMES, arrays, strict=True)
    yield from (("document_starts", starts_D1), ("document_entries", entries_D), ("blocks", blocks))


_ARRAY_NAMES = ("text", "suffixes", "hot_edges", "hot_ends", "hot_tokens", "hot_rows", "hot_children")


def _open_field(path: Path, field: str, manifest: Manifest, documents: int) -> FieldText:
    arrays = SuffixArrays(*(_frozen(open_array(path, f"{field}.{name}")) for name in _ARRAY_NAMES))
    starts_D1, entries_D, blocks = (
        _frozen(open_array(path, f"{field}.{name}")) for name in ("document_starts", "document_entries", "blocks")
    )
    tokens = int(manifest.info["tokens"][field])
    shapes = {
        "text": (len(arrays.text_N), tokens),
        "suffixes": (len(arrays.suffixes_N), tokens),
        "hot_edges": (len(arrays.edges_H1), len(arrays.ends_H) + 1),
        "hot_rows": (len(arrays.rows_E), len(arrays.tokens_E)),
        "hot_children": (len(arrays.children_E), len(arrays.tokens_E)),
        "document_starts": (len(starts_D1), documents + 1),
        "document_entries": (len(entries_D), documents),
        "blocks": (len(blocks), (tokens >> BLOCK_SHIFT) + bool(tokens & ((1 << BLOCK_SHIFT) - 1))),
    }
    for name, (found, wanted) in shapes.items():
        if found != wanted:
            msg = f"'{path}' holds {found} values of {field}.{name}, expected {wanted}. Build the index again."
            raise IndexFormatError(msg)
    return FieldText(arrays, starts_D1, entries_D, blocks)


def _frozen(values: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Plain read-only array: memory-mapped and fresh arrays then share one compiled kernel."""
    plain = values.view(np.ndarray)
    plain.flags.writeable = False
    return plain
