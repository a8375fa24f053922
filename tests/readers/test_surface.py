"""Answers are shown as a passage writes them."""

import pytest

from gr_components.readers.surface import Surface, find_text, find_tokens, surface_form
from gr_components.tokenization import Encoded, TextTokenizer


@pytest.mark.parametrize(
    ("needle", "text", "found"),
    [
        ("levi ' s stadium", "at Levi's Stadium in", "Levi's Stadium"),
        ("$ 3. 5 million", "paid $3.5 million for", "$3.5 million"),
        ("beyonce", "by Beyoncé, who", "Beyoncé"),
        ("fluss", "am Fluß.", "Fluß"),
        ("art", "a party of art lovers", "art"),
        ("art", "a party", None),
        ("par", "a party", None),
        ("1998 / 99", "in 1998/99.", "1998/99"),
        ("(fifty)", "fifty", None),
        ("  ", "anything", None),
        ("", "", None),
    ],
)
def test_find_text(needle: str, text: str, found: str | None) -> None:
    span = find_text(needle, text)
    assert (span and text[slice(*span)]) == found


def test_find_tokens() -> None:
    assert find_tokens([1, 2], [0, 1, 1, 2, 1, 2]) == 2
    assert find_tokens([1, 3], [0, 1, 1, 2]) is None
    assert find_tokens([1, 2], [1]) is None


def test_tokens_are_found_at_their_place_in_every_kind_of_tokenizer(tokenizer: TextTokenizer) -> None:
    from gr_components.readers.layout import ReaderLayout

    kind = "reserved" if tokenizer.id("[CLS]") is not None else "text"
    layout = ReaderLayout(kind=kind, first=(), before_title=(), before_context=(), last=(), answer_start=(0,), stop=1)
    text = "It was played at Levi's Stadium in Santa Clara."
    context = layout.tokenize(tokenizer, [text])[0]
    tokens = layout.tokenize(tokenizer, ["Levi's Stadium"])[0].ids
    shown = surface_form(tokens, "not used", [text], [context], [0])
    assert shown == Surface("Levi's Stadium", 0, (17, 31))


def test_the_most_relevant_passage_that_has_it_is_quoted() -> None:
    texts = ["the RIVER Rhine", "a river", "The River"]
    contexts = [Encoded([5, 7, 8], [(0, 3), (4, 9), (10, 15)]), Encoded([6, 7], [(0, 1), (2, 7)]), Encoded([], [])]
    assert surface_form([7], "river", texts, contexts, [1, 0, 2]) == Surface("river", 1, (2, 7))
    assert surface_form([7], "river", texts, contexts, [0, 1, 2]) == Surface("RIVER", 0, (4, 9))
    # without its tokens, by its characters
    assert surface_form([9], "river", texts, contexts, [2, 0, 1]) == Surface("River", 2, (4, 9))


def test_an_unknown_character_is_shown_as_the_passage_has_it() -> None:
    context = Encoded([5, 1], [(0, 1), (2, 4)])
    assert surface_form([5, 1], "x [UNK]", ["x ☃☃"], [context], [0]).text == "x ☃☃"


def test_an_answer_in_no_passage_stays_as_it_is() -> None:
    assert surface_form([3], " Paris ", ["Rome"], [Encoded([4], [(0, 4)])], [0]) == Surface("Paris", None, None)
    assert surface_form([], "", ["Rome"], [Encoded([4], [(0, 4)])], [0]) == Surface("", None, None)
