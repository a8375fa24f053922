"""Passages to Haystack documents and back. The only file of this package that imports Haystack."""

from haystack import Document

from gr_components.data.records import Passage
from gr_components.errors import DataError

#: Metadata field in which `DocumentEmbedder` names the model of a document's embedding, for a store to compare.
EMBEDDING_MODEL = "embedding_model"


def to_document(passage: Passage) -> Document:
    """
    Return a passage as a document: its own id, `content` = text, everything else in `meta`.

    :param passage: A passage. `meta` always gets `title`, and `queries` (a list) when there are any.
    """
    queries = {"queries": list(passage.queries)} if passage.queries else {}
    return Document(id=passage.id, content=passage.text, meta={**passage.meta, "title": passage.title, **queries})


def to_passage(document: Document) -> Passage:
    """
    Return a document as a passage; the reverse of `to_document`.

    :param document: A document with text.
    :raises DataError: If it has no text, or if its title or pseudo-queries are of the wrong type.
    """
    meta = dict(document.meta)
    title, queries = meta.pop("title", None) or "", meta.pop("queries", None) or ()
    if document.content is None:
        msg = f"Document {document.id!r} has no text content."
        raise DataError(msg)
    if not isinstance(title, str) or isinstance(queries, str) or not all(isinstance(query, str) for query in queries):
        msg = f"Document {document.id!r}: meta['title'] must be a text and meta['queries'] a list of texts."
        raise DataError(msg)
    return Passage(document.id, title, document.content, tuple(queries), meta)
