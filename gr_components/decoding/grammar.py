"""
The identifier grammar: which token sequences a generative retriever writes, and how documents lie in the index.

A *view* is one kind of identifier (body n-gram, title, pseudo-query). A *field* is one token text of the suffix index
in which a view's identifiers must occur. Stored in `gr_model.json`, so that model, index and trainer cannot disagree.

Two layouts are shipped:

- `reserved` (WordPiece models trained here): each view has a field of its own and a reserved `[unusedN]` token as the
  decoder's start token; one encoding of the query serves all views. Text can never produce a reserved token.
- `markers` (BART, as SEAL https://arxiv.org/abs/2204.10628 and MINDER https://arxiv.org/abs/2305.16675): one field
  "title @@ body || query @@ ..."; view names are written into the encoder's input; markers delimit identifiers.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from gr_components.errors import ConfigError, ModelError
from gr_components.models.description import read_description
from gr_components.tokenization import TextTokenizer

BODY, TITLE, QUERY = "body", "title", "query"


@dataclass(frozen=True, kw_only=True)
class View:
    """
    One kind of identifier.

    :param name: `body`, `title` or `query`.
    :param field: The index field whose text it is taken from.
    :param decoder_start: Tokens fed to the decoder before the first generated one.
    :param index_prefix: Tokens that precede the identifier in the index (a marker, a document start); not generated.
    :param stop: Token that completes an identifier, generated and part of the index; None for n-grams of free length.
    :param max_tokens: Longest identifier, `stop` included.
    :param complete_only: Whether only identifiers that end with `stop` count.
    :param word_start: Whether the first token must start a word.
    :param source_suffix: Text appended to the query for this view (`markers` layout); empty otherwise.
    :param beams: Beam width of this view; None for the search's own.
    """

    name: str
    field: str
    decoder_start: tuple[int, ...]
    index_prefix: tuple[int, ...] = ()
    stop: int | None = None
    max_tokens: int = 10
    complete_only: bool = False
    word_start: bool = False
    source_suffix: str = ""
    beams: int | None = None


@dataclass(frozen=True, kw_only=True)
class Grammar:
    """
    All views, and the tokens that structure the index.

    :param layout: `reserved` or `markers`.
    :param views: The views in decoding order.
    :param boundary: Token between documents and between a document's entries of one field; in no identifier.
    :param title_end: `markers` layout: token after a title and after a pseudo-query.
    :param query_start: `markers` layout: token before a pseudo-query.
    :param never: Tokens that are never generated, `stop` tokens excepted.
    :param max_source: Longest encoder input in tokens, special tokens included.
    """

    layout: str
    views: tuple[View, ...]
    boundary: int
    title_end: int | None = None
    query_start: int | None = None
    never: tuple[int, ...] = ()
    max_source: int = 64

    def __post_init__(self) -> None:
        if self.layout not in ("reserved", "markers"):
            msg = f"grammar.layout must be 'reserved' or 'markers', got {self.layout!r}."
            raise ConfigError(msg)
        names = [view.name for view in self.views]
        if not names or len(set(names)) != len(names):
            msg = f"grammar.views must be named differently and not be empty, got {names}."
            raise ConfigError(msg)

    @property
    def fields(self) -> tuple[str, ...]:
        """Names of the index fields, each once, in the order of the views."""
        return tuple(dict.fromkeys(view.field for view in self.views))

    def view(self, name: str) -> View:
        """
        Return a view by name.

        :param name: `body`, `title` or `query`.
        :raises ConfigError: If the grammar has no such view.
        """
        for view in self.views:
            if view.name == name:
                return view
        msg = f"The model has no view {name!r}; its views are {[v.name for v in self.views]}."
        raise ConfigError(msg)

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for `gr_model.json`."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "Grammar":
        """
        Rebuild from `to_dict`.

        :param data: Plain values.
        """
        views = tuple(
            View(**{**v, "decoder_start": tuple(v["decoder_start"]), "index_prefix": tuple(v["index_prefix"])})
            for v in data["views"]
        )
        return cls(**{**data, "views": views, "never": tuple(data["never"])})


@dataclass(frozen=True, kw_only=True)
class TokenizedDocument:
    """
    A document as the index stores it.

    :param number: The store's document number.
    :param entries: For each field its token sequences, markers included, the boundary token excluded.
    """

    number: int
    entries: dict[str, list[list[int]]] = field(default_factory=dict)


def reserved_grammar(
    tokenizer: TextTokenizer, *, query_view: bool = True, body_tokens: int = 10, title_tokens: int = 24,
    query_tokens: int = 24,
) -> Grammar:  # fmt: skip
    """
    Grammar of the models that are trained here from BERT-like encoders.

    `[unused1]` (body), `[unused2]` (title), `[unused3]` (query) start the decoder; `[SEP]` is boundary and stop.

    :param tokenizer: A WordPiece tokenizer that has these tokens.
    :param query_view: Whether there is a pseudo-query view (MINDER) or not (SEAL).
    :param body_tokens: Longest body n-gram.
    :param title_tokens: Longest title, stop included.
    :param query_tokens: Longest pseudo-query, stop included.
    :raises ConfigError: If a token is missing.
    """
    starts = [tokenizer.require(f"[unused{i}]", "The reserved grammar") for i in (1, 2, 3)]
    stop = tokenizer.require("[SEP]", "The reserved grammar")
    never = [i for i in range(tokenizer.vocabulary_size) if tokenizer.token(i).startswith("[unused")]
    never += [i for role, i in tokenizer.special.items() if role not in ("sep", "eos")]
    views = (
        View(name=BODY, field=BODY, decoder_start=(starts[0],), max_tokens=body_tokens, word_start=True),
        View(name=TITLE, field=TITLE, decoder_start=(starts[1],), index_prefix=(starts[1],), stop=stop,
             max_tokens=title_tokens, complete_only=True, beams=5),
        View(name=QUERY, field=QUERY, decoder_start=(starts[2],), index_prefix=(starts[2],), stop=stop,
             max_tokens=query_tokens, complete_only=True),
    )  # fmt: skip
    chosen = views if query_view else views[:2]
    return Grammar(layout="reserved", views=chosen, boundary=stop, never=tuple(sorted(set(never))))


def marker_grammar(tokenizer: TextTokenizer, *, query_view: bool = True, max_source: int = 128) -> Grammar:
    """
    Grammar of BART models as SEAL and MINDER train them: markers are ordinary text (`@@`, `||`).

    :param tokenizer: BART's tokenizer.
    :param query_view: Whether there is a pseudo-query view (MINDER) or not (SEAL).
    :param max_source: Longest encoder input in tokens.
    :raises ConfigError: If the tokenizer does not write a marker as one token.
    """
    title_end, query_start = _single(tokenizer, " @@"), _single(tokenizer, " ||")
    bos, eos, pad = (tokenizer.special[role] for role in ("bos", "eos", "pad"))
    suffix = " || {} || +"
    views = [
        View(name=BODY, field="text", decoder_start=(eos,), max_tokens=10, source_suffix=suffix.format(BODY)),
        View(name=TITLE, field="text", decoder_start=(eos,), index_prefix=(eos,), stop=title_end, max_tokens=15,
             complete_only=True, source_suffix=suffix.format(TITLE)),
    ]  # fmt: skip
    if query_view:
        views.append(
            View(name=QUERY, field="text", decoder_start=(eos, query_start), index_prefix=(query_start,),
                 stop=title_end, max_tokens=30, complete_only=True, source_suffix=suffix.format(QUERY))
        )  # fmt: skip
    return Grammar(layout="markers", views=tuple(views), boundary=eos, title_end=title_end, query_start=query_start,
                   never=(bos, pad, eos), max_source=max_source)  # fmt: skip


def read_grammar(folder: str | Path) -> tuple[Grammar, TextTokenizer]:
    """
    Read grammar and tokenizer of a generative retriever's folder, without its weights and without torch.

    :param folder: A local model folder whose `gr_model.json` has a grammar.
    :raises ModelError: If it has none.
    """
    info = read_description(folder)
    if info is None or info.get("grammar") is None:
        msg = f"'{folder}' is no generative retriever: its gr_model.json is missing or has no 'grammar'."
        raise ModelError(msg)
    return Grammar.from_dict(info["grammar"]), TextTokenizer.from_folder(folder)


def layout_documents(
    numbers: Sequence[int], titles: Sequence[str], texts: Sequence[str], queries: Sequence[Sequence[str]],
    grammar: Grammar, tokenizer: TextTokenizer,
) -> list[TokenizedDocument]:  # fmt: skip
    """
    Tokenize documents and lay them out for the index.

    :param numbers: D document numbers.
    :param titles: D titles; empty where there is none.
    :param texts: D texts.
    :param queries: D lists of pseudo-queries.
    :param grammar: The model's grammar.
    :param tokenizer: The model's tokenizer.
    """
    flat_queries = [query for several in queries for query in several]
    if grammar.layout == "markers":
        titles_ids = tokenizer.encode([" " + title.strip() for title in titles])
        texts_ids = tokenizer.encode([" " + text.strip() for text in texts])
        queries_ids = iter(tokenizer.encode([" " + query.strip() for query in flat_queries]))
    else:
        titles_ids, texts_ids = tokenizer.encode(titles), tokenizer.encode(texts)
        queries_ids = iter(tokenizer.encode(flat_queries))
    documents = []
    for number, title, text, several in zip(numbers, titles_ids, texts_ids, queries, strict=True):
        own = [next(queries_ids) for _ in several]
        documents.append(TokenizedDocument(number=number, entries=_entries(title, text, own, grammar)))
    return documents


def _entries(
    title: list[int], text: list[int], queries: list[list[int]], grammar: Grammar
) -> dict[str, list[list[int]]]:
    if grammar.layout == "markers":
        assert grammar.title_end is not None
        stream = [*title, grammar.title_end, *text] if title else list(text)
        for query in queries:
            assert grammar.query_start is not None
            stream += [grammar.query_start, *query, grammar.title_end]
        return {"text": [stream]}
    entries: dict[str, list[list[int]]] = {BODY: [text]}
    for view in grammar.views:
        if view.name == TITLE and title:
            entries[view.field] = [[*view.index_prefix, *title]]
        if view.name == QUERY:
            entries[view.field] = [[*view.index_prefix, *query] for query in queries if query]
    return entries


def _single(tokenizer: TextTokenizer, text: str) -> int:
    ids = tokenizer.encode([text])[0]
    if len(ids) != 1:
        msg = f"The marker grammar needs {text!r} to be one token; this tokenizer writes {ids}."
        raise ConfigError(msg)
    return ids[0]
