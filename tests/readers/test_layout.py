"""How inputs are written, and that what is too long is cut where it may be."""

import json

import numpy as np
import pytest

from gr_components.errors import ConfigError
from gr_components.readers.layout import ReaderLayout, pad_inputs, reserved_layout, text_layout
from gr_components.tokenization import TextTokenizer

QUESTION, TITLE, TEXT = "Where was it played?", "Super Bowl 50", "It was played at Levi's Stadium in Santa Clara."


def layout_of(tokenizer: TextTokenizer, **lengths: int) -> ReaderLayout:
    if tokenizer.id("[CLS]") is not None:
        return reserved_layout(tokenizer, **lengths)
    return text_layout(tokenizer, answer_start=(0,), **lengths)


def pieces(layout: ReaderLayout, tokenizer: TextTokenizer, *texts: str) -> list[list[int]]:
    return [encoded.ids for encoded in layout.tokenize(tokenizer, texts)]


def test_pieces_together_are_the_whole_text(tokenizer: TextTokenizer) -> None:
    layout = layout_of(tokenizer)
    ids, begin, end = layout.assemble(*pieces(layout, tokenizer, QUESTION, TITLE, TEXT))
    if layout.kind == "text":
        wanted = f"question: {QUESTION} title: {TITLE} context: {TEXT}"
        assert ids == tokenizer.encode([wanted], special=True)[0]
    else:
        question, title, text = tokenizer.encode([QUESTION, TITLE, TEXT])
        cls, sep, marker = (tokenizer.id(token) for token in ("[CLS]", "[SEP]", "[unused5]"))
        assert ids == [cls, *question, sep, *title, marker, *text, sep]
    assert ids[begin:end] == pieces(layout, tokenizer, TEXT)[0]


def test_offsets_are_those_of_the_text(tokenizer: TextTokenizer) -> None:
    encoded = layout_of(tokenizer).tokenize(tokenizer, [TEXT])[0]
    words = [TEXT[a:b].strip() for a, b in encoded.offsets]
    assert "".join(words) == TEXT.replace(" ", "")


def test_without_title(tokenizer: TextTokenizer) -> None:
    layout = layout_of(tokenizer)
    question, title, text = pieces(layout, tokenizer, QUESTION, "", TEXT)
    assert title == []
    ids, begin, end = layout.assemble(question, title, text)
    assert ids[begin:end] == text
    if layout.kind == "text":
        assert ids == tokenizer.encode([f"question: {QUESTION} context: {TEXT}"], special=True)[0]


def test_long_parts_are_cut_and_the_end_stays(tokenizer: TextTokenizer) -> None:
    layout = layout_of(tokenizer, max_passage_tokens=64, max_question_tokens=6, max_title_tokens=4)
    question, title, text = pieces(layout, tokenizer, QUESTION * 9, TITLE * 9, TEXT * 9)
    ids, begin, end = layout.assemble(question, title, text)
    assert len(ids) == 64
    assert ids[-1] == layout.stop
    assert ids[begin:end] == text[: end - begin]
    assert ids[: len(layout.first) + 6] == [*layout.first, *question[:6]]


def test_survives_json(tokenizer: TextTokenizer) -> None:
    layout = layout_of(tokenizer)
    assert ReaderLayout.from_dict(json.loads(json.dumps(layout.to_dict()))) == layout


def test_text_cannot_write_reserved_tokens(tokenizer: TextTokenizer) -> None:
    layout = layout_of(tokenizer)
    if layout.kind == "reserved":
        written = pieces(layout, tokenizer, "a [unused5] b [unused4] c")[0]
        assert not {layout.answer_start[0], layout.before_context[0]} & set(written)
        assert {layout.answer_start[0], layout.before_context[0]} <= set(layout.never)
        assert layout.stop not in layout.never


def test_padding() -> None:
    inputs = pad_inputs([[([5, 6, 7], 1, 2)], [([5, 6], 1, 2), ([8], 0, 1)]], pad_id=9)
    assert inputs.ids_BNL.tolist() == [[[5, 6, 7], [9, 9, 9]], [[5, 6, 9], [8, 9, 9]]]
    assert inputs.mask_BNL.sum(-1).tolist() == [[3, 0], [2, 1]]
    assert np.argwhere(inputs.context_BNL).tolist() == [[0, 0, 1], [1, 0, 1], [1, 1, 0]]
    assert pad_inputs([], 0).ids_BNL.shape == (0, 0, 0)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"kind": "other"}, "reader.kind must be one of text, reserved, got 'other'"),
        ({"max_passage_tokens": 40}, "max_passage_tokens=40 leaves no room for a context"),
        ({"max_question_tokens": 0}, "must be at least 1, got 0 and 32"),
        ({"max_answer_tokens": 1}, "max_answer_tokens must be at least 2"),
    ],
)
def test_bad_settings(changes: dict[str, object], message: str) -> None:
    pieces = {"first": (), "before_title": (), "before_context": (), "last": (2,), "answer_start": (2,), "stop": 2}
    values = {"kind": "text", **pieces}
    with pytest.raises(ConfigError, match=message):
        ReaderLayout(**{**values, **changes})  # type: ignore[arg-type]


def test_tokenizers_that_do_not_fit(tokenizer: TextTokenizer) -> None:
    if tokenizer.id("[CLS]") is None:
        with pytest.raises(ConfigError, match=r"needs the token \[CLS\]"):
            reserved_layout(tokenizer)
    else:
        with pytest.raises(ConfigError, match="needs a tokenizer with an end token"):
            text_layout(tokenizer, answer_start=(0,))
