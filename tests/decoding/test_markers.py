"""BART's layout: one field, views told apart by the encoder's input and by markers in the text."""

import numpy as np
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from gr_components.decoding.config import SearchConfig
from gr_components.decoding.engine import GenerativeEngine
from gr_components.decoding.grammar import marker_grammar
from gr_components.decoding.sources import source_ids
from gr_components.tokenization import TextTokenizer

WORDS = [
    "<s>",
    "<pad>",
    "</s>",
    "<unk>",
    "@@",
    "||",
    "+",
    "body",
    "title",
    "query",
    "ant",
    "bee",
    "cat",
    "dog",
    "eel",
    "fox",
]
DOCUMENTS = [
    ("fox", "ant bee cat", ["eel dog"]),
    ("ant", "dog fox @@ eel || ant bee @@", ["cat"]),  # markers inside the text
    ("fox ant", "fox eel", []),
    ("", "bee bee fox", ["eel dog", "fox"]),
]


@pytest.fixture(scope="module")
def tokenizer():
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    return TextTokenizer(tokenizer, {"bos": 0, "pad": 1, "eos": 2, "unk": 3})


@pytest.fixture(scope="module")
def grammar(tokenizer):
    return marker_grammar(tokenizer, max_source=12)


@pytest.fixture
def index(make_index, grammar, tokenizer):
    return make_index(documents=DOCUMENTS, grammar=grammar, tokenizer=tokenizer, cuts=[2])


def config(view):
    """One view, with room for everything, and nothing left out because it would count nothing."""
    return SearchConfig(views=(view,), beams=16, constant_log_probability=-1.0)


class Counting:
    """Counts encodings."""

    def __init__(self, decoder):
        self.decoder, self.encoded = decoder, []

    def __getattr__(self, name):
        return getattr(self.decoder, name)

    def encode(self, ids, mask):
        self.encoded.append(ids)
        return self.decoder.encode(ids, mask)


def keys_of_view(result, name):
    keys = result.keys
    return keys.select(np.array([keys.views[v].name == name for v in keys.views_K], dtype=bool))


def test_titles_match_document_starts_only(index, grammar, tokenizer, table_decoder):
    engine = GenerativeEngine(table_decoder, tokenizer, grammar, config("title"))
    (result,) = engine.search(["eel"], index, top_k=10)
    found = {tokenizer.decode(row[row >= 0].tolist()) for row in keys_of_view(result, "title").tokens_KT}
    assert found == {"fox @@", "ant @@", "fox ant @@", "bee bee fox || eel dog @@"}
    assert result.keys.counts_K.max() == 1, "'fox @@' also occurs inside a text"


def test_pseudo_queries_start_at_their_marker(index, grammar, tokenizer, table_decoder):
    engine = GenerativeEngine(table_decoder, tokenizer, grammar, config("query"))
    (result,) = engine.search(["eel"], index, top_k=10)
    keys = keys_of_view(result, "query")
    found = {
        tokenizer.decode(row[row >= 0].tolist()): count
        for row, count in zip(keys.tokens_KT, keys.counts_K, strict=True)
    }
    # The second document's text holds markers of its own; nothing tells them apart.
    assert found == {"eel dog @@": 2, "cat @@": 1, "fox @@": 1, "ant bee @@": 1}
    source = table_decoder.encode(
        np.array(source_ids(["eel"], " || query || +", tokenizer, grammar)), np.ones((1, 7), bool)
    )
    teacher = table_decoder.score(source, keys.tokens_KT, (2, 5), keys.owners_K)
    np.testing.assert_allclose(keys.log_probs_K, teacher.sum(axis=1), rtol=1e-5)


def test_one_encoding_for_each_source(index, grammar, tokenizer, table_decoder):
    decoder = Counting(table_decoder)
    GenerativeEngine(decoder, tokenizer, grammar, SearchConfig(beams=2)).search(["eel", "fox"], index, top_k=3)
    assert [tokenizer.decode(ids[1].tolist(), skip_special=False).split()[:4] for ids in decoder.encoded] == [
        ["<s>", "fox", "||", view] for view in ("body", "title", "query")
    ]
    decoder.encoded.clear()
    GenerativeEngine(decoder, tokenizer, grammar, SearchConfig.minder(beams=2)).search(["eel"], index, top_k=3)
    assert len(decoder.encoded) == 4, "re-scoring reads the plain query as well"


def test_long_queries_keep_the_suffix(grammar, tokenizer):
    (ids,) = source_ids(["ant bee cat dog eel fox ant bee cat"], " || body || +", tokenizer, grammar)
    assert tokenizer.decode(ids, skip_special=False) == "<s> ant bee cat dog eel fox || body || + </s>"


def test_published_settings_find_the_document(index, grammar, tokenizer, table_decoder):
    engine = GenerativeEngine(table_decoder, tokenizer, grammar, SearchConfig.minder(beams=4, smoothing=0.0))
    (result,) = engine.search(["ant bee cat"], index, top_k=10)
    assert len(result.hits) == 4
    words = {i.text for h in result.hits for i in h.identifiers if i.view == "words"}
    assert words <= {"ant", "bee", "cat", "ant bee", "bee cat", "ant bee cat"}
