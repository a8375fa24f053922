"""Find where an answer stands in a passage, so that it can be shown as the passage writes it."""

import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass

from gr_components.tokenization import Encoded


@dataclass(frozen=True)
class Surface:
    """
    An answer as it is shown.

    :param text: The answer.
    :param passage: Position of the passage that it was taken from; None if it is in none.
    :param span: First and one past last character in that passage's text; None if it is in none.
    """

    text: str
    passage: int | None = None
    span: tuple[int, int] | None = None


def surface_form(
    tokens: Sequence[int],
    detokenized: str,
    texts: Sequence[str],
    contexts: Sequence[Encoded],
    order: Sequence[int],
) -> Surface:
    """
    Show an answer with the original characters of the first passage that contains it.

    Tokens are compared first: they know where words begin, and unknown characters match themselves. Then the
    detokenized text is compared regardless of case, accents and spaces, as tokenizers lose these.

    :param tokens: Token ids of the answer.
    :param detokenized: The answer as the tokenizer writes it; what is shown if no passage contains it.
    :param texts: Texts of the passages.
    :param contexts: Token ids and offsets of these texts.
    :param order: Positions of the passages, most relevant first.
    """
    if tokens:
        for position in order:
            span = _token_span(tokens, contexts[position], texts[position])
            if span is not None:
                return Surface(texts[position][slice(*span)], position, span)
    for position in order:
        span = find_text(detokenized, texts[position])
        if span is not None:
            return Surface(texts[position][slice(*span)], position, span)
    return Surface(detokenized.strip())


def find_text(needle: str, text: str) -> tuple[int, int] | None:
    """
    Find whole words in a text, regardless of case, accents and spaces.

    :param needle: What to find; never found if it is blank.
    :param text: Where to look.
    :returns: First and one past last character in `text`, or None.
    """
    wanted = "".join(character for character, _ in _folded(needle))
    folded = _folded(text)
    haystack = "".join(character for character, _ in folded)
    start = haystack.find(wanted) if wanted else -1
    while start >= 0:
        begin, end = folded[start][1], folded[start + len(wanted) - 1][1] + 1
        if not _inside_word(text, begin) and not _inside_word(text, end):
            return begin, end
        start = haystack.find(wanted, start + 1)
    return None


def find_tokens(needle: Sequence[int], tokens: Sequence[int]) -> int | None:
    """
    Return where a sequence of tokens first stands in another, or None.

    :param needle: What to find.
    :param tokens: Where to look.
    """
    count = len(needle)
    wanted = list(needle)
    for start in range(len(tokens) - count + 1):
        if tokens[start] == wanted[0] and list(tokens[start : start + count]) == wanted:
            return start
    return None


def _token_span(tokens: Sequence[int], context: Encoded, text: str) -> tuple[int, int] | None:
    start = find_tokens(tokens, context.ids)
    if start is None:
        return None
    begin, end = context.offsets[start][0], context.offsets[start + len(tokens) - 1][1]
    # Tokens that carry the space before a word cover it too.
    shown = text[begin:end]
    begin += len(shown) - len(shown.lstrip())
    end -= len(shown) - len(shown.rstrip())
    return (begin, end) if begin < end else None


def _folded(text: str) -> list[tuple[str, int]]:
    """Characters without case, accents and spaces, each with its position in the text."""
    return [
        (character, position)
        for position, original in enumerate(text)
        for character in unicodedata.normalize("NFKD", original).casefold()
        if not unicodedata.combining(character) and not character.isspace()
    ]


def _inside_word(text: str, position: int) -> bool:
    return 0 < position < len(text) and text[position - 1].isalnum() and text[position].isalnum()
