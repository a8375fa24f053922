"""
BM25 over document texts with tantivy (k1 = 1.2, b = 0.75, fixed there).

The index knows numbers and texts, nothing else. It is derived data: whoever owns the texts remembers which change the
commit with a given `opstamp` contains, and repeats `apply` from there; applying a change twice does no harm. Query text
is split into terms like document text and never read as query syntax.
"""

import json
import re
import shutil
import struct
import tempfile
import threading
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from gr_components.errors import ConfigError, IndexFormatError, full_disk
from gr_components.extras import need

LANGUAGES = (
    "arabic", "danish", "dutch", "english", "finnish", "french", "german", "greek", "hungarian", "italian", "norwegian",
    "portuguese", "romanian", "russian", "spanish", "swedish", "tamil", "turkish",
)  # fmt: skip
_STOP_WORDS = frozenset(LANGUAGES) - {"arabic", "greek", "romanian", "tamil", "turkish"}
_CJK = re.compile(
    "[\u1100-\u11ff\u3040-\u30ff\u31f0-\u31ff\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7af\uf900-\ufaff\uff66-\uff9f"
    "\U00020000-\U0003ffff]+"
)
_FOOTER = 1337  # ends every data file of tantivy, after the length of the footer that holds its checksum
_LONGEST_TERM = 255  # bytes; longer "words" are data, not text
_HEAP = 64 << 20
_SELECTIVE = 2000  # filters of up to this many numbers go into the query; broader ones are applied to its results
_EXTRA = 32  # hits fetched beyond what is asked, so that ties rarely need a second search

Hits = list[tuple[int, float]]


@dataclass(frozen=True, kw_only=True)
class Analysis:
    """
    How text becomes terms: split at everything but letters and digits, lower case, stop words out, stemmed.

    :param language: Snowball language of the stemmer and the stop words (`LANGUAGES`), or `none` for neither.
    :param stop_words: Whether frequent function words are left out, where tantivy has a list for the language.
    :param cjk_ngrams: Length of the overlapping character n-grams that runs of Chinese, Japanese and Korean characters
        become; 0 keeps each run as one term.
    """

    language: str = "english"
    stop_words: bool = True
    cjk_ngrams: int = 2

    def __post_init__(self) -> None:
        if self.language not in ("none", *LANGUAGES):
            msg = f"Unknown language {self.language!r}. Use one of none, {', '.join(LANGUAGES)}."
            raise ConfigError(msg)
        if self.cjk_ngrams < 0:
            msg = f"cjk_ngrams must be >= 0, got {self.cjk_ngrams}."
            raise ConfigError(msg)

    def to_dict(self) -> dict[str, Any]:
        """Return plain values."""
        return asdict(self)

    def prepare(self, text: str) -> str:
        """
        Rewrite runs of CJK characters as n-grams between spaces; other text stays as it is.

        :param text: Any text.
        """
        size = self.cjk_ngrams
        return _CJK.sub(lambda run: _ngrams(run[0], size), text) if size and _CJK.search(text) else text


class LexicalIndex:
    """
    A tantivy index in a folder or in memory. Searching is safe from several threads; `apply` has one caller at a time.

    Use `create` or `open`.

    :param index: tantivy's index.
    :param analysis: How text becomes terms; the same for the life of an index.
    :param folder: Where it is, or None.
    """

    def __init__(self, index: Any, analysis: Analysis, folder: Path | None) -> None:
        tantivy = need("tantivy", "lexical")
        self.analysis = analysis
        self._tantivy = tantivy
        self._index = index
        self._folder = folder
        self._analyzer = _analyzer(tantivy, analysis)
        self._terms_lock = threading.Lock()
        index.register_tokenizer("gr", self._analyzer)
        index.config_reader("manual")
        self.reload()

    @classmethod
    def create(cls, folder: Path | None, analysis: Analysis) -> "LexicalIndex":
        """
        Make an empty index.

        :param folder: Where; what is there is removed. None keeps the index in memory.
        :param analysis: How text becomes terms.
        """
        tantivy = need("tantivy", "lexical")
        if folder is None:
            return cls(tantivy.Index(_schema(tantivy)), analysis, None)
        if folder.exists():
            shutil.rmtree(folder)
        folder.mkdir(parents=True)
        return cls(tantivy.Index(_schema(tantivy), path=str(folder)), analysis, folder)

    @classmethod
    def open(cls, folder: Path, analysis: Analysis, *, writable: bool = True) -> "LexicalIndex":
        """
        Open an index.

        :param folder: Where it is.
        :param analysis: The same as when it was made.
        :param writable: False works in a folder that cannot be written.
        :raises IndexFormatError: If there is none, or it is damaged.
        """
        tantivy = need("tantivy", "lexical")
        if not (folder / "meta.json").is_file():
            msg = f"'{folder}' holds no lexical index."
            raise IndexFormatError(msg)
        with _damage(folder):
            if writable:
                return cls(tantivy.Index.open(str(folder)), analysis, folder)
            # tantivy makes lock files beside its data even to read; it gets a folder of links to the files, which it
            # has mapped when it is open.
            with tempfile.TemporaryDirectory(prefix="gr-lexical-") as links:
                for file in folder.iterdir():
                    if not file.name.endswith(".lock"):
                        (Path(links) / file.name).symlink_to(file.resolve())
                return cls(tantivy.Index.open(links), analysis, folder)

    @property
    def opstamp(self) -> int:
        """Identifies the last commit on disk; grows with every commit, 0 before the first and in memory."""
        return 0 if self._folder is None else read_opstamp(self._folder)

    @property
    def num_documents(self) -> int:
        """Documents in the index, as of the last `reload`."""
        return int(self._searcher.num_docs)

    def reload(self) -> None:
        """
        Search the last commit from now on.

        :raises IndexFormatError: If its files are damaged.
        """
        with _damage(self._folder):
            self._index.reload()
            self._searcher = self._index.searcher()

    def apply(self, removed: Iterable[int], added: Iterable[tuple[int, str]]) -> int:
        """
        Remove and add documents in one commit, then search that commit.

        :param removed: Numbers to remove; unknown ones are ignored.
        :param added: Numbers and texts; what was there under the same number is replaced.
        :returns: The `opstamp` of the commit.
        """
        with _damage(self._folder):
            writer = self._index.writer(_HEAP, 1)
            try:
                for number in removed:
                    writer.delete_documents_by_term("number", int(number))
                for number, text in added:
                    writer.delete_documents_by_term("number", int(number))
                    document = self._tantivy.Document()
                    document.add_integer("number", int(number))
                    document.add_text("text", self.analysis.prepare(text))
                    writer.add_document(document)
                writer.commit()
            finally:
                writer.wait_merging_threads()
        self.reload()
        return self.opstamp

    def search(self, queries: Sequence[str], *, top_k: int, allowed: npt.NDArray[np.int64] | None = None) -> list[Hits]:
        """
        Find the best documents for each query.

        :param queries: Texts; one without terms finds nothing.
        :param top_k: Most hits for each query.
        :param allowed: Ascending numbers that may be found, or None for all.
        :returns: For each query numbers and BM25 scores, best first, equal scores by number.
        :raises IndexFormatError: If the index is damaged.
        """
        searcher = self._searcher
        if top_k <= 0 or not searcher.num_docs or (allowed is not None and not len(allowed)):
            return [[] for _ in queries]
        with _damage(self._folder):
            restriction = None
            if allowed is not None and len(allowed) <= _SELECTIVE:
                numbers = self._tantivy.Query.term_set_query(self._index.schema, "number", allowed.tolist())
                restriction = self._tantivy.Query.const_score_query(numbers, 0.0)
                allowed = None
            return [self._search(searcher, query, top_k, restriction, allowed) for query in queries]

    def _search(
        self, searcher: Any, text: str, top_k: int, restriction: Any, allowed: npt.NDArray[np.int64] | None
    ) -> Hits:
        query = self._query(text)
        if query is None:
            return []
        if restriction is not None:
            must = self._tantivy.Occur.Must
            query = self._tantivy.Query.boolean_query([(must, query), (must, restriction)])
        total = int(searcher.num_docs)
        share = 1.0 if allowed is None else max(len(allowed), 1) / total
        limit = int(top_k / share) + _EXTRA
        while True:
            limit = min(limit, total)
            found = searcher.search(query, limit, count=False).hits
            numbers = np.array(searcher.fast_field_values("number", [at for _, at in found]), dtype=np.int64)
            scores = np.array([score for score, _ in found], dtype=np.float64)
            keep = np.ones(len(found), bool) if allowed is None else _contains(allowed, numbers)
            # Documents with the last fetched score may have been cut, so the k-th best must score higher to be final.
            complete = len(found) < limit or limit == total
            if complete or (keep.sum() >= top_k and scores[keep][top_k - 1] > scores[-1]):
                numbers, scores = numbers[keep], scores[keep]
                order = np.lexsort((numbers, -scores))[:top_k]
                return list(zip(numbers[order].tolist(), scores[order].tolist(), strict=True))
            limit *= 4

    def _query(self, text: str) -> Any:
        with self._terms_lock:
            terms = Counter(self._analyzer.analyze(self.analysis.prepare(text)))
        query, schema, should = self._tantivy.Query, self._index.schema, self._tantivy.Occur.Should
        parts = []
        for term, count in terms.items():
            part = query.term_query(schema, "text", term, "freq")
            parts.append((should, part if count == 1 else query.boost_query(part, float(count))))
        return query.boolean_query(parts) if parts else None


def read_opstamp(folder: Path) -> int:
    """
    Read which commit a folder holds.

    :param folder: Folder of an index.
    :raises IndexFormatError: If it holds none.
    """
    return int(_read_meta(folder)["opstamp"])


def _read_meta(folder: Path) -> dict[str, Any]:
    try:
        meta: dict[str, Any] = json.loads((folder / "meta.json").read_text(encoding="utf-8"))
        int(meta["opstamp"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        msg = f"'{folder}' holds no readable lexical index: {error}"
        raise IndexFormatError(msg) from error
    return meta


def check_files(folder: Path) -> None:
    """
    Compare every data file of an index with the checksum that tantivy wrote at its end.

    :param folder: Folder of an index.
    :raises IndexFormatError: If one differs, or there is no index.
    """
    for file in sorted(_data_files(folder)):
        if not file.is_file():
            msg = f"'{file}' is missing"
            raise IndexFormatError(msg)
        data = file.read_bytes()
        length, magic = struct.unpack("<II", data[-8:].rjust(8, b"\0"))
        body, footer = data[: -8 - length], data[-8 - length : -8]
        try:
            sound = magic == _FOOTER and json.loads(footer)["crc"] == zlib.crc32(body)
        except (ValueError, KeyError, TypeError):
            sound = False
        if not sound:
            msg = f"'{file}' does not have the checksum that tantivy wrote: it is damaged"
            raise IndexFormatError(msg)


def _data_files(folder: Path) -> Iterator[Path]:
    """Yield the files of the current segments; tantivy keeps a list of all that it wrote."""
    try:
        names = json.loads((folder / ".managed.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        msg = f"'{folder}' holds no readable list of its files: {error}"
        raise IndexFormatError(msg) from error
    for segment in _read_meta(folder).get("segments", []):
        identifier, deletes = segment["segment_id"].replace("-", ""), segment.get("deletes")
        current = f"{identifier}.{deletes['opstamp']}.del" if deletes else None
        for name in names:
            if name.partition(".")[0] == identifier and (name == current or not name.endswith(".del")):
                yield folder / name


@contextmanager
def _damage(folder: Path | None) -> Iterator[None]:
    """Turn what tantivy raises, panics of its Rust code included, into one error."""
    try:
        yield
    except BaseException as error:
        panic = type(error).__name__ == "PanicException"
        if (not panic and not isinstance(error, ValueError)) or isinstance(error, IndexFormatError):
            raise
        if number := full_disk(error):
            raise OSError(number, f"no room for the lexical index '{folder}'") from error
        msg = f"The lexical index '{folder}' cannot be used: {error}"
        raise IndexFormatError(msg) from error


def _schema(tantivy: Any) -> Any:
    builder = tantivy.SchemaBuilder()
    builder.add_integer_field("number", indexed=True, fast=True)  # an unsigned one dies on a plain Python int
    builder.add_text_field("text", tokenizer_name="gr", index_option="freq")
    return builder.build()


def _analyzer(tantivy: Any, analysis: Analysis) -> Any:
    builder = tantivy.TextAnalyzerBuilder(tantivy.Tokenizer.simple())
    builder = builder.filter(tantivy.Filter.remove_long(_LONGEST_TERM)).filter(tantivy.Filter.lowercase())
    if analysis.language != "none":
        if analysis.stop_words and analysis.language in _STOP_WORDS:
            builder = builder.filter(tantivy.Filter.stopword(analysis.language))
        builder = builder.filter(tantivy.Filter.stemmer(analysis.language))
    return builder.build()


def _ngrams(run: str, size: int) -> str:
    grams = [run[i : i + size] for i in range(max(len(run) - size, 0) + 1)]
    return f" {' '.join(grams)} "


def _contains(sorted_N: npt.NDArray[np.int64], values_K: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
    at_K = np.minimum(np.searchsorted(sorted_N, values_K), len(sorted_N) - 1)
    return sorted_N[at_K] == values_K
