"""Small models without training, so that whole pipelines run in seconds."""

from dataclasses import dataclass
from pathlib import Path

import pytest

from gr_components.data import Passage
from gr_components.progress import Silent
from gr_pipelines.demo import data

PASSAGES = 24


@dataclass(frozen=True)
class TinyModels:
    """Folders of a generator, a reader and a cross-encoder that were not trained, and a store made with them."""

    generator: str
    reader: str
    ranker: str
    store: str

    @property
    def parameters(self) -> dict[str, str]:
        """What `hybrid` and `qa` are loaded with."""
        return {
            "store": self.store,
            "generative_model": self.generator,
            "ranker_model": self.ranker,
            "reader_model": self.reader,
        }


def passages() -> list[Passage]:
    return data.corpus(with_queries=True)[:PASSAGES]


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory, minilm: Path) -> TinyModels:
    import torch
    from transformers import AutoTokenizer, BertConfig, BertForSequenceClassification

    from gr_components.data import write_corpus
    from gr_components.decoding.calibration import Calibration
    from gr_components.decoding.grammar import reserved_grammar
    from gr_components.models.seq2seq.building import build_seq2seq_from_encoder, cut_vocabulary
    from gr_components.models.seq2seq.copying import CopyConfig
    from gr_components.models.seq2seq.folder import save_seq2seq
    from gr_components.readers.layout import reserved_layout
    from gr_pipelines.indexing import IndexOptions, index_documents

    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("tiny")
    texts = [part for p in passages() for part in (p.title, p.text, *p.queries)]
    tokenizer, keep = cut_vocabulary(minilm, texts)
    built = build_seq2seq_from_encoder(minilm, keep, decoder_layers=1, copy=CopyConfig())
    grammar, layout = reserved_grammar(tokenizer, body_tokens=5), reserved_layout(tokenizer)
    calibration = Calibration(slope=0.5, absent=1.0).to_dict()
    info = {"task": "generative_retriever", "grammar": grammar.to_dict(), "calibration": calibration}
    save_seq2seq(built, tokenizer, info, folder / "generator")
    save_seq2seq(built, tokenizer, {"task": "fid", "reader": layout.to_dict()}, folder / "reader")
    words = AutoTokenizer.from_pretrained(minilm)
    small = BertConfig(
        vocab_size=len(words), hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32,
        num_labels=1,
    )  # fmt: skip
    BertForSequenceClassification(small).save_pretrained(folder / "ranker")
    words.save_pretrained(folder / "ranker")
    write_corpus(folder / "docs.jsonl", passages())
    options = IndexOptions(generative_model=str(folder / "generator"))
    index_documents([folder / "docs.jsonl"], folder / "store", options, Silent())
    return TinyModels(*(str(folder / name) for name in ("generator", "reader", "ranker", "store")))
