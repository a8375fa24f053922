"""A toy language, a decoder that looks its log-probabilities up, and a small real model."""

import itertools
import zlib
from types import SimpleNamespace

import numpy as np
import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors

from gr_components.decoding.grammar import layout_documents, reserved_grammar
from gr_components.indexes.suffix import SuffixSegment
from gr_components.indexes.suffix_index import SuffixIndex
from gr_components.tokenization import TextTokenizer

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "[unused1]", "[unused2]", "[unused3]"]
WORDS = ["ant", "bee", "cat", "dog", "eel", "fox", "gnu", "hen", "Ant", "##s", "##ling", "?"]


@pytest.fixture(scope="session")
def tokenizer():
    """WordPiece over a dozen words."""
    vocabulary = {token: i for i, token in enumerate(SPECIAL + WORDS)}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    tokenizer.decoder = decoders.WordPiece()
    tokenizer.add_special_tokens(SPECIAL[:5])
    return TextTokenizer(tokenizer, {"pad": 0, "unk": 1, "cls": 2, "sep": 3, "mask": 4})


@pytest.fixture(scope="session")
def grammar(tokenizer):
    return reserved_grammar(tokenizer, body_tokens=4, title_tokens=5, query_tokens=5)


class TableDecoder:
    """
    The decoder protocol with log-probabilities that are a fixed function of source and tokens so far: no model, so that
    brute force can ask for any of them.
    """

    def __init__(self, vocabulary_size, seed=0, sharpness=2.0):
        self.vocabulary_size, self.seed, self.sharpness = vocabulary_size, seed, sharpness

    def log_probs(self, source, tokens):
        key = zlib.crc32(repr((self.seed, tuple(map(int, source)), tuple(map(int, tokens)))).encode())
        logits = np.random.default_rng(key).normal(0, self.sharpness, self.vocabulary_size)
        return (logits - np.log(np.exp(logits).sum())).astype(np.float32)

    def encode(self, input_ids_BL, attention_mask_BL):
        return [tuple(ids[mask].tolist()) for ids, mask in zip(input_ids_BL, attention_mask_BL, strict=True)]

    def start(self, source, beams):
        return SimpleNamespace(
            sources=[s for s in source for _ in range(beams)], tokens=[()] * (len(source) * beams), beams=beams
        )

    def step(self, tokens_R, rows_R, state):
        for row, before in enumerate(rows_R):
            assert row // state.beams == before // state.beams, "a row may only continue a row of its own query"
        state.tokens = [(*state.tokens[before], int(token)) for before, token in zip(rows_R, tokens_R, strict=True)]
        return np.stack([self.log_probs(s, t) for s, t in zip(state.sources, state.tokens, strict=True)])

    def score(self, source, targets_KT, decoder_start, owner_K):
        scores = np.zeros(targets_KT.shape, dtype=np.float32)
        for k, target in enumerate(targets_KT):
            for t, token in enumerate(target):
                if token >= 0:
                    scores[k, t] = self.log_probs(source[owner_K[k]], (*decoder_start, *target[:t]))[token]
        return scores


@pytest.fixture
def table_decoder(tokenizer):
    return TableDecoder(tokenizer.vocabulary_size)


@pytest.fixture(scope="session")
def corpus():
    """Twenty documents: (title, text, pseudo-queries)."""
    rng = np.random.default_rng(7)
    words = ["ant", "ants", "bee", "cat", "dog", "eel", "fox", "gnus", "hen", "henling"]

    def text(low, high):
        return " ".join(rng.choice(words, rng.integers(low, high)))

    documents = [(text(1, 3), text(4, 14), [text(2, 4) for _ in range(rng.integers(0, 3))]) for _ in range(18)]
    return [*documents, ("", "ant ant ant ant", []), ("fox", "", ["hen hen ?"])]


@pytest.fixture
def make_index(tmp_path, corpus, tokenizer, grammar):
    def make(cuts=(), live=None, grammar=grammar, documents=corpus, tokenizer=tokenizer):
        titles, texts, queries = zip(*documents, strict=True)
        tokenized = layout_documents(range(len(documents)), titles, texts, queries, grammar, tokenizer)
        edges, segments = [0, *cuts, len(documents)], []
        for a, b in itertools.pairwise(edges):
            folder = tmp_path / f"segment-{len(list(tmp_path.iterdir()))}"
            segments.append(SuffixSegment.build(
                folder, tokenized[a:b], fields=grammar.fields, boundary=grammar.boundary, hot_threshold=3,
                tokenizer_fingerprint=tokenizer.fingerprint, vocabulary_size=tokenizer.vocabulary_size,
            ))  # fmt: skip
        masks = None if live is None else [np.isin(segment.numbers_D, live) for segment in segments]
        return SuffixIndex(segments, masks)

    return make


@pytest.fixture(scope="session")
def real_decoder(tokenizer):
    """A small BERT-to-BERT with random weights and a copy head, in torch."""
    import torch
    from transformers import BertConfig, EncoderDecoderConfig, EncoderDecoderModel

    from gr_components.models.seq2seq.copying import CopyConfig
    from gr_components.models.seq2seq.model import Seq2SeqModel
    from gr_components.models.seq2seq.torch_decoder import TorchDecoder

    torch.manual_seed(0)
    shape = {
        "vocab_size": tokenizer.vocabulary_size, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2,
        "intermediate_size": 64, "max_position_embeddings": 80, "initializer_range": 0.3,
    }  # fmt: skip
    config = EncoderDecoderConfig.from_encoder_decoder_configs(
        BertConfig(**shape), BertConfig(**shape, is_decoder=True, add_cross_attention=True)
    )
    config.decoder_start_token_id = config.pad_token_id = 0
    return TorchDecoder(Seq2SeqModel(EncoderDecoderModel(config=config), CopyConfig()).eval())
