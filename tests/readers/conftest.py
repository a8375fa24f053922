"""Readers with random weights: BART, T5 and BERT-to-BERT (with a copy head), each with a tokenizer of its own kind."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import (
    BartConfig,
    BartForConditionalGeneration,
    BertConfig,
    EncoderDecoderConfig,
    EncoderDecoderModel,
    T5Config,
    T5ForConditionalGeneration,
)

from gr_components.data.records import Passage
from gr_components.models.seq2seq.copying import CopyConfig
from gr_components.models.seq2seq.folder import LoadedSeq2Seq, save_seq2seq, tie_bert_decoder
from gr_components.models.seq2seq.model import Seq2SeqModel
from gr_components.readers.layout import ReaderLayout, reserved_layout
from gr_components.tokenization import TextTokenizer

TEXTS = [
    "question: title: context:",
    "Super Bowl 50 was played at Levi's Stadium in Santa Clara, California.",
    "The Amazon rainforest covers much of the Amazon basin of South America.",
    "Nikola Tesla was a Serbian American inventor; he was born in Smiljan.",
    "Where was it played? Who was born there? What covers the basin?",
]


def wordpiece() -> TextTokenizer:
    special = ["[PAD]", *[f"[unused{i}]" for i in range(8)], "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    words = sorted({word for text in TEXTS[1:3] for word in text.lower().replace(",", " ").replace(".", " ").split()})
    letters = "abcdefghijklmnopqrstuvwxyz0123456789"
    vocabulary = [*special, *letters, *(f"##{c}" for c in letters), *",.?!:;'$%-&", *(w for w in words if w.isalpha())]
    table = {token: index for index, token in enumerate(dict.fromkeys(vocabulary))}
    tokenizer = Tokenizer(models.WordPiece(table, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    roles = {"pad": "[PAD]", "unk": "[UNK]", "cls": "[CLS]", "sep": "[SEP]", "mask": "[MASK]"}
    return TextTokenizer(tokenizer, {role: table[token] for role, token in roles.items()})


def byte_pairs() -> TextTokenizer:
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
    tokenizer.train_from_iterator(TEXTS, trainer)
    tokenizer.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0), trim_offsets=True)
    return TextTokenizer(tokenizer, {"bos": 0, "pad": 1, "eos": 2, "unk": 3})


def sentence_pieces() -> TextTokenizer:
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=200, special_tokens=["<pad>", "</s>", "<unk>"], unk_token="<unk>", show_progress=False
    )
    tokenizer.train_from_iterator([*TEXTS, *"abcdefghijklmnopqrstuvwxyz"], trainer)
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    return TextTokenizer(tokenizer, {"pad": 0, "eos": 1, "unk": 2})


def bart(size: int) -> torch.nn.Module:
    return BartForConditionalGeneration(
        BartConfig(vocab_size=size, d_model=32, encoder_layers=2, decoder_layers=2, encoder_attention_heads=4,
                   decoder_attention_heads=4, encoder_ffn_dim=64, decoder_ffn_dim=64, max_position_embeddings=256)
    )  # fmt: skip


def t5(size: int) -> torch.nn.Module:
    return T5ForConditionalGeneration(
        T5Config(vocab_size=size, d_model=32, d_kv=8, d_ff=64, num_layers=2, num_heads=4, decoder_start_token_id=0)
    )


def bert(size: int) -> torch.nn.Module:
    shape = {"vocab_size": size, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
             "intermediate_size": 64, "max_position_embeddings": 256}  # fmt: skip
    decoder = BertConfig(**shape, is_decoder=True, add_cross_attention=True)
    model = EncoderDecoderModel(EncoderDecoderConfig.from_encoder_decoder_configs(BertConfig(**shape), decoder))
    tie_bert_decoder(model)
    return model


KINDS: dict[str, tuple[Callable[[], TextTokenizer], Callable[[int], torch.nn.Module]]] = {
    "bart": (byte_pairs, bart),
    "t5": (sentence_pieces, t5),
    "bert": (wordpiece, bert),
}


def make(kind: str, *, copy: bool = False) -> LoadedSeq2Seq:
    tokenizer, model = KINDS[kind][0](), None
    torch.manual_seed(0)
    model = KINDS[kind][1](tokenizer.vocabulary_size)
    for parameter in model.parameters():
        if parameter.dim() > 1:  # else random models attend evenly and always write the same
            parameter.data.mul_(2.0 if kind == "t5" else 6.0)
    config = CopyConfig(previous_state=True, position_bias=True, continuation=True, selective_read=True)
    module = Seq2SeqModel(model.eval(), config if copy else None).eval()
    info = {} if kind != "bert" else {"reader": small_layout(tokenizer).to_dict()}
    return LoadedSeq2Seq(module, tokenizer, info, Path(kind))


def small_layout(tokenizer: TextTokenizer) -> ReaderLayout:
    return reserved_layout(
        tokenizer, max_passage_tokens=96, max_question_tokens=32, max_title_tokens=16, max_answer_tokens=8
    )


@pytest.fixture(params=["bart", "t5", "bert"])
def plain(request: pytest.FixtureRequest) -> LoadedSeq2Seq:
    """A model of each kind without copy head."""
    return make(request.param)


@pytest.fixture(params=["bart", "t5", "bert-copy"])
def any_reader(request: pytest.FixtureRequest) -> LoadedSeq2Seq:
    """A model of each kind, the BERT-to-BERT with a copy head."""
    return make(request.param.removesuffix("-copy"), copy=request.param.endswith("copy"))


@pytest.fixture
def copying() -> LoadedSeq2Seq:
    """A BERT-to-BERT model with a copy head."""
    return make("bert", copy=True)


@pytest.fixture(params=["bart", "t5", "bert"])
def tokenizer(request: pytest.FixtureRequest) -> TextTokenizer:
    """A tokenizer of each kind."""
    return KINDS[request.param][0]()


@pytest.fixture(scope="session")
def reader_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A saved BERT-to-BERT reader with a copy head."""
    loaded = make("bert", copy=True)
    folder = tmp_path_factory.mktemp("models") / "reader"
    save_seq2seq(loaded.model, loaded.tokenizer, loaded.info, folder)
    return folder


@pytest.fixture
def passages() -> list[Passage]:
    """Three short passages."""
    return [
        Passage("bowl", "Super Bowl 50", TEXTS[1]),
        Passage("amazon", "Amazon rainforest", TEXTS[2]),
        Passage("tesla", "", TEXTS[3]),
    ]
