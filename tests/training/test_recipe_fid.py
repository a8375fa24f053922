"""The recipe `fid` from data files to a reader that answers, from an encoder and from a T5."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from haystack import Document
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import BertConfig, BertModel, T5Config, T5ForConditionalGeneration

from gr_components.data import Passage, Question, write_corpus, write_qrels, write_questions
from gr_components.errors import ConfigError
from gr_components.readers.fid import FiDReader
from gr_components.tokenization import TextTokenizer
from gr_training.config import parse
from gr_training.recipes.fid import Config, train
from gr_training.run import Run, prepare

COLOURS = ["red", "blue", "green", "white", "black", "yellow", "brown", "grey"]
THINGS = ["house", "river", "mountain", "road", "bridge", "tower", "garden", "castle"]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    passages, questions, qrels = [], [], {}
    for n, thing in enumerate(THINGS):
        colour = COLOURS[n]
        passages.append(
            Passage(f"p{n}", thing, f"Long ago there was a {thing} . The {thing} was {colour} as the others say .")
        )
        questions.append(Question(f"q{n}", f"which colour was the {thing} ?", (colour,)))
        qrels[f"q{n}"] = {f"p{n}": 1}
    write_corpus(folder / "corpus.jsonl", passages)
    write_questions(folder / "questions.jsonl", questions)
    write_qrels(folder / "qrels.tsv", qrels)
    return folder


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("encoder")
    words = [
        *COLOURS,
        *THINGS,
        "long",
        "ago",
        "there",
        "was",
        "a",
        "the",
        "as",
        "others",
        "say",
        "which",
        "colour",
        *".?",
    ]
    letters = "abcdefghijklmnopqrstuvwxyz"
    special = ["[PAD]", *[f"[unused{n}]" for n in range(16)], "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    names = dict.fromkeys([*special, *words, *letters, *(f"##{c}" for c in letters)])
    table = {token: index for index, token in enumerate(names)}
    tokenizer = Tokenizer(models.WordPiece(table, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    roles = {role: table[f"[{role.upper()}]"] for role in ("pad", "unk", "cls", "sep", "mask")}
    TextTokenizer(tokenizer, roles).save(folder)
    torch.manual_seed(0)
    BertModel(
        BertConfig(vocab_size=len(table), hidden_size=32, num_hidden_layers=2, num_attention_heads=4,
                   intermediate_size=64, max_position_embeddings=128)
    ).save_pretrained(folder)  # fmt: skip
    return folder


@pytest.fixture(scope="module")
def t5(tmp_path_factory: pytest.TempPathFactory, data: Path) -> Path:
    folder = tmp_path_factory.mktemp("t5")
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    texts = [(data / "corpus.jsonl").read_text(), (data / "questions.jsonl").read_text()]
    special = ["<pad>", "</s>", "<unk>"]
    trainer = trainers.UnigramTrainer(vocab_size=120, special_tokens=special, unk_token="<unk>", show_progress=False)
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    TextTokenizer(tokenizer, {"pad": 0, "eos": 1, "unk": 2}).save(folder)
    size = tokenizer.get_vocab_size()
    T5ForConditionalGeneration(
        T5Config(vocab_size=size, d_model=32, d_kv=8, d_ff=64, num_layers=2, num_heads=4, decoder_start_token_id=0)
    ).save_pretrained(folder)
    return folder


def recipe(data: Path, start: dict[str, Any], **changes: Any) -> Config:
    files = {"corpus": str(data / "corpus.jsonl"), "questions": str(data / "questions.jsonl"),
             "qrels": str(data / "qrels.tsv")}  # fmt: skip
    settings = {
        "recipe": "fid", "start": start,
        "lengths": {"max_passage_tokens": 64, "max_question_tokens": 16, "max_title_tokens": 4, "max_answer_tokens": 6},
        "batches": {"passages": 6, "num_negatives": 2, "negative_share": 0.5, "depth": 3},
        "data": [{"name": "made", "licence": "CC0-1.0", **files}],
        "validation": files,
        "validation_passages": 2,
        "fit": {"steps": 4, "learning_rate": 1e-3, "precision": "float32", "log_every": 1, **changes.pop("fit", {})},
        **changes,
    }  # fmt: skip
    return parse(Config, settings, "test")


BUILD = {"decoder_layers": 1, "copy": {"previous_state": True, "continuation": True, "selective_read": True}}


def run(config: Config, out: Path) -> Path:
    prepare(out, config, resume=False, restart=False)
    return train(config, Run(out=out, device="cpu"))


def answer(folder: Path, **settings: Any) -> str:
    document = Document(
        content="Long ago there was a tower . The tower was yellow as the others say .", meta={"title": "tower"}
    )
    reader = FiDReader(model=str(folder), **settings)
    (found,) = reader.run(query="which colour was the tower ?", documents=[document])["answers"]
    return found.data


def test_an_encoder_becomes_a_reader_that_learns(data: Path, encoder: Path, tmp_path: Path) -> None:
    config = recipe(
        data, {"model": str(encoder), "build": BUILD, "dropout": 0.0}, weights="int8",
        fit={"steps": 60, "learning_rate": 3e-3, "warmup": 10},
    )  # fmt: skip
    folder = run(config, tmp_path / "run")
    losses = [
        e["loss"] for e in map(json.loads, (tmp_path / "run" / "log.jsonl").read_text().splitlines()) if "loss" in e
    ]
    assert sum(losses[-20:]) < 0.4 * sum(losses[:20])
    info = json.loads((folder / "gr_model.json").read_text())
    assert info["task"] == "reader"
    assert info["reader"]["kind"] == "reserved"
    assert info["copy"]["selective_read"]
    assert info["weights"] == "int8"
    assert info["licence"] == "Apache-2.0"
    assert set(info["metrics"]) == {"gold EM", "gold F1", "top 2 EM", "top 2 F1", "mean"}
    assert info["metrics"]["gold EM"] == 100.0
    assert answer(folder) == "yellow"
    assert answer(folder, extractive=True) in "Long ago there was a tower . The tower was yellow as the others say ."


def test_a_t5_becomes_a_reader(data: Path, t5: Path, tmp_path: Path) -> None:
    folder = run(recipe(data, {"model": str(t5), "dropout": None}), tmp_path / "run")
    info = json.loads((folder / "gr_model.json").read_text())
    assert info["reader"]["kind"] == "text"
    assert info["reader"]["max_passage_tokens"] == 64
    assert info["copy"] is None
    assert isinstance(answer(folder), str)


def test_training_goes_on_from_a_reader(data: Path, encoder: Path, tmp_path: Path) -> None:
    first = run(recipe(data, {"model": str(encoder), "build": BUILD}), tmp_path / "first")
    second = run(recipe(data, {"model": str(first)}), tmp_path / "second")
    assert json.loads((second / "gr_model.json").read_text())["copy"]["selective_read"]


def test_a_reader_appears_whole_or_not_at_all(
    data: Path, encoder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        msg = "No space left on device"
        raise OSError(msg)

    monkeypatch.setattr("gr_training.recipes.fid.describe", fail)
    config = recipe(data, {"model": str(encoder), "build": BUILD}, fit={"steps": 1})
    with pytest.raises(OSError, match="No space left"):
        run(config, tmp_path / "run")
    assert not (tmp_path / "run" / "model").exists()
    assert [path.name for path in (tmp_path / "run").iterdir() if "model" in path.name] == []


def test_unknown_settings_are_named(data: Path, encoder: Path) -> None:
    with pytest.raises(ConfigError, match=r"batches\.num_negative: unknown key.*Did you mean 'num_negatives'"):
        recipe(data, {"model": str(encoder)}, batches={"num_negative": 3})
