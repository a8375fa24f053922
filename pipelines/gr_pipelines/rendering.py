"""Search results and answers as JSON for programs and as text for people."""

import json
import math
import textwrap
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from haystack import Document
from haystack.dataclasses import GeneratedAnswer

_WIDTH = 110
_SHOWN_KEYS = 5


def documents_json(documents: Sequence[Document]) -> str:
    """
    Return `{"documents": [...]}` in Haystack's dictionary form, without embeddings.

    :param documents: What was found.
    """
    return _dump({"documents": [_plain(document.to_dict()) for document in documents]})


def answers_json(answers: Sequence[GeneratedAnswer]) -> str:
    """
    Return `{"answers": [...]}` in Haystack's dictionary form, without embeddings.

    :param answers: What was answered.
    """
    rows = []
    for answer in answers:
        data = answer.to_dict()
        data = data.get("init_parameters", data)
        data["documents"] = [_plain(document) for document in data.get("documents") or []]
        rows.append(data)
    return _dump({"answers": rows})


def documents_text(documents: Sequence[Document]) -> Iterator[str]:
    """
    Yield lines that show documents, and the identifiers that a generative retriever matched in them.

    :param documents: What was found.
    """
    if not documents:
        yield "Nothing was found."
    for rank, document in enumerate(documents, start=1):
        score = "" if document.score is None else f"{document.score:.4f}"
        title = document.meta.get("title") or ""
        yield f"{rank:>3}  {score:>8}  {document.id}" + (f"  {title}" if title else "")
        yield _excerpt(document.content or "", indent=5)
        identifiers = document.meta.get("identifiers")
        if isinstance(identifiers, list) and identifiers:
            yield f"     matched: {_identifiers(identifiers)}"


def answers_text(answers: Sequence[GeneratedAnswer]) -> Iterator[str]:
    """
    Yield lines that show answers and the passages that the reader looked at, each with its share of the attention.

    :param answers: What was answered.
    """
    if not answers:
        yield "No answer was found."
    for answer in answers:
        probability = answer.meta.get("log_probability")
        yield answer.data + (f"   (log-probability {probability:.2f})" if isinstance(probability, float) else "")
        shares = _shares(answer.meta.get("passage_scores") or {})
        for document in answer.documents:
            share = f"{shares[document.id]:.0%}" if document.id in shares else ""
            yield f"  {share:>5}  {document.id}  {document.meta.get('title') or ''}".rstrip()
            yield _excerpt(document.content or "", indent=9)


def figures_text(figures: Mapping[str, float]) -> Iterator[str]:
    """
    Yield a line for each figure of `gr eval`. EM and F1 are shown in percent too, as the demo and training show them.

    :param figures: Measures from 0 to 1, `ms_per_query`, `num_queries`.
    """
    for name, value in figures.items():
        digits = 0 if name == "num_queries" else 1 if name == "ms_per_query" else 4
        percent = f" = {100 * value:.1f} %" if name in ("EM", "F1") else ""
        yield f"{name:<14} {value:.{digits}f}{percent}"


def _shares(logits: dict[str, float]) -> dict[str, float]:
    """Softmax."""
    highest = max(logits.values(), default=0.0)
    weights = {name: math.exp(logit - highest) for name, logit in logits.items()}
    return {name: weight / sum(weights.values()) for name, weight in weights.items()}


def _excerpt(text: str, indent: int, lines: int = 2) -> str:
    room = (_WIDTH - indent) * lines
    flat = " ".join(text.split())
    short = flat if len(flat) <= room else flat[: room - 1].rsplit(" ", 1)[0] + "…"
    return textwrap.fill(short, _WIDTH, initial_indent=" " * indent, subsequent_indent=" " * indent) or " " * indent


def _identifiers(identifiers: Iterable[dict[str, Any]]) -> str:
    best = sorted(identifiers, key=lambda entry: -float(entry.get("contribution") or 0.0))[:_SHOWN_KEYS]
    return ", ".join(
        f'"{entry.get("text")}" ({entry.get("view")} {entry.get("contribution") or 0.0:.2f})' for entry in best
    )


def _plain(document: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in document.items() if key not in ("embedding", "sparse_embedding")}


def _dump(data: dict[str, Any]) -> str:
    return json.dumps(data, ensure_ascii=False, default=str)
