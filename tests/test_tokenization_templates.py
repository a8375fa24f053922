"""Templates and truncation equal those of transformers, for single texts and pairs."""

import random

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

from gr_components.errors import ConfigError
from gr_components.tokenization import TextTokenizer

_WORDS = [
    "the",
    "quick",
    "brown",
    "fox",
    "über",
    "antidisestablishmentarianism",
    "北京",
    "x-ray",
    ",",
    ".",
    "don't",
    "3.14",
    "hello",
]


def _texts(rng: random.Random, count: int, longest: int) -> list[str]:
    return [" ".join(rng.choice(_WORDS) for _ in range(rng.randrange(longest))) for _ in range(count)]


@pytest.fixture(scope="module")
def byte_level():
    """A small byte-level BPE tokenizer with RoBERTa's template, which has two separators between the texts."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<s>", "<pad>", "</s>", "<unk>"]
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_texts(random.Random(1), 200, 20), trainer)
    tokenizer.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0))
    return tokenizer


@pytest.fixture(scope="module", params=["wordpiece", "byte_level"])
def both(request, minilm, byte_level):
    """The tokenizer of transformers and ours."""
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    if request.param == "wordpiece":
        theirs = AutoTokenizer.from_pretrained(str(minilm))
    else:
        copy = Tokenizer.from_str(byte_level.to_str())
        theirs = PreTrainedTokenizerFast(tokenizer_object=copy, pad_token="<pad>", cls_token="<s>", sep_token="</s>")
    return theirs, TextTokenizer(Tokenizer.from_str(theirs.backend_tokenizer.to_str()), {})


def test_pairs_are_cut_like_in_transformers(both):
    theirs, ours = both
    rng = random.Random(0)
    firsts, seconds = _texts(rng, 200, 15), _texts(rng, 200, 40)
    cut = 0
    for length in (5, 6, 9, 16, 31, 64, 200):
        expected = theirs(firsts, seconds, truncation=True, max_length=length, return_token_type_ids=True)
        got = ours.encode_templated(firsts, seconds, max_length=length)
        assert [e.ids for e in got] == expected["input_ids"]
        assert [e.type_ids for e in got] == expected["token_type_ids"]
        cut += sum(len(e.ids) == length for e in got)
    assert cut > 100, "no pair was cut, so this test would be vacuous"


def test_one_query_with_many_passages_is_not_cut_in_place(both):
    theirs, ours = both
    query = " ".join(_WORDS)
    passages = ["hello", " ".join(_WORDS * 5), "", " ".join(_WORDS)]
    expected = theirs([query] * 4, passages, truncation=True, max_length=24)["input_ids"]
    assert [e.ids for e in ours.encode_templated([query] * 4, passages, max_length=24)] == expected


def test_single_texts_are_cut_like_in_transformers(both):
    theirs, ours = both
    texts = ["", *_texts(random.Random(2), 100, 40)]
    for length in (3, 8, 30):
        expected = theirs(texts, truncation=True, max_length=length)["input_ids"]
        assert [e.ids for e in ours.encode_templated(texts, max_length=length)] == expected
    assert [e.ids for e in ours.encode_templated(texts)] == theirs(texts)["input_ids"]
    assert ours.encode_templated([]) == []


def test_a_length_without_room_for_text_is_refused(both):
    _, ours = both
    with pytest.raises(ConfigError, match="max_length must be at least 3 for this tokenizer, got 2"):
        ours.encode_templated(["hello"], max_length=2)
