"""The scripts of training tests as modules, and a tiny collection with a tiny encoder for whole recipes."""

import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
import yaml
from click.testing import CliRunner
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import BertConfig, BertModel

from gr_components.tokenization import TextTokenizer
from gr_training.cli import command

PLACES = ["Paris", "Rome", "Oslo", "Cairo", "Lima", "Tokyo", "Delhi", "Quito", "Bern", "Riga", "Doha", "Baku"]
KINDS = ["river", "museum", "market", "bridge"]


@pytest.fixture(scope="session")
def toy(load_script) -> ModuleType:
    return load_script(Path(__file__).with_name("toy_run.py"))


@pytest.fixture(scope="session")
def tiny(load_script) -> ModuleType:
    return load_script(Path(__file__).with_name("tiny_lists.py"))


@pytest.fixture
def gr_train() -> Callable[..., Any]:
    """Run `gr train` on a recipe in `FOLDER/recipe.yaml`, into `FOLDER/run`; returns click's result."""

    def run(folder: Path, recipe: dict[str, Any], *arguments: str) -> Any:
        folder.mkdir(exist_ok=True)
        path = folder / "recipe.yaml"
        path.write_text(yaml.safe_dump(recipe))
        return CliRunner().invoke(command, [str(path), "--out", str(folder / "run"), "--device", "cpu", *arguments])

    return run


@pytest.fixture
def done() -> Callable[..., Any]:
    """Demand that a command ended well."""

    def check(result: Any) -> None:
        assert result.exception is None, f"{result.output}\n{result.exception!r}"

    return check


@pytest.fixture
def together() -> Callable[..., None]:
    """Run a command as several processes that train together on CPUs, as `accelerate launch` does, until all ended."""

    def run(command: list[str], count: int) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        base = {**os.environ, "OMP_NUM_THREADS": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        base |= {"WORLD_SIZE": str(count), "LOCAL_WORLD_SIZE": str(count), "ACCELERATE_USE_CPU": "1"}
        processes = [
            subprocess.Popen([sys.executable, *command], env={**base, "RANK": str(r), "LOCAL_RANK": str(r)})
            for r in range(count)
        ]
        try:
            assert [process.wait(timeout=250) for process in processes] == [0] * count
        finally:
            for process in processes:
                process.kill()
                process.wait()

    return run


def _lines(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture(scope="session")
def collection(tmp_path_factory) -> Path:
    """48 passages, three questions about each; every third question is for validation."""
    folder = tmp_path_factory.mktemp("collection")
    passages, questions, qrels, train, validation = [], [], [], [], []
    for number, (place, kind) in enumerate((p, k) for p in PLACES for k in KINDS):
        year = 1800 + number
        visits = f"Many people visit this {kind} every single summer."
        text = f"The old {kind} of {place} was opened in {year} by the mayor. {visits}"
        passages.append({"id": f"p{number}", "title": f"{place} {kind}", "text": text})
        texts = [
            f"When was the {kind} of {place} opened?",
            f"Who opened the {place} {kind}?",
            f"Which {kind} is in {place}?",
        ]
        answers = [str(year), "the mayor", place]
        for part, (question, answer) in enumerate(zip(texts, answers, strict=True)):
            questions.append({"id": f"q{number}-{part}", "text": question, "answers": [answer]})
            qrels.append(f"q{number}-{part}\tp{number}\t1\n")
            (validation if (number + part) % 3 == 0 else train).append(f"q{number}-{part}")
    _lines(folder / "corpus.jsonl", passages)
    _lines(folder / "questions.jsonl", questions)
    (folder / "qrels.tsv").write_text("".join(qrels))
    (folder / "train.txt").write_text("\n".join(train) + "\n")
    (folder / "validation.txt").write_text("\n".join(validation) + "\n")
    return folder


@pytest.fixture(scope="session")
def tiny_encoder(collection: Path, tmp_path_factory) -> Path:
    """A BERT of two layers and 32 dimensions, random weights, and a WordPiece tokenizer that knows the collection."""
    folder = tmp_path_factory.mktemp("encoder")
    special = ["[PAD]", *(f"[unused{i}]" for i in range(16)), "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    letters = [chr(code) for code in range(33, 127)]
    splitter = Tokenizer(models.WordPiece({"[UNK]": 0}, unk_token="[UNK]"))
    splitter.normalizer = normalizers.BertNormalizer(lowercase=True)
    splitter.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    words: set[str] = set()
    for name in ("corpus.jsonl", "questions.jsonl"):
        for line in (collection / name).read_text().splitlines():
            text = " ".join(v for v in json.loads(line).values() if isinstance(v, str))
            normal = splitter.normalizer.normalize_str(text)
            words.update(word for word, _ in splitter.pre_tokenizer.pre_tokenize_str(normal))
    pieces = [*letters, *(f"##{letter}" for letter in letters)]
    vocabulary = list(dict.fromkeys([*special, *pieces, *sorted(words)]))
    ids = {token: index for index, token in enumerate(vocabulary)}
    tokenizer = Tokenizer(models.WordPiece(ids, unk_token="[UNK]"))
    tokenizer.normalizer, tokenizer.pre_tokenizer = splitter.normalizer, splitter.pre_tokenizer
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", ids["[CLS]"]), ("[SEP]", ids["[SEP]"])],
    )  # fmt: skip
    tokenizer.add_special_tokens([token for token in special if not token.startswith("[unused")])
    roles = {role: ids[f"[{role.upper()}]"] for role in ("pad", "unk", "cls", "sep", "mask")}
    TextTokenizer(tokenizer, roles).save(folder)
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(vocabulary), hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64,
        max_position_embeddings=128,
    )  # fmt: skip
    BertModel(config).save_pretrained(folder)
    return folder


@pytest.fixture
def sources(collection: Path) -> dict[str, Any]:
    """The settings `data`, `held_out` and `validation` of a recipe over the collection."""
    paths = {name: str(collection / file) for name, file in
             {"corpus": "corpus.jsonl", "questions": "questions.jsonl", "qrels": "qrels.tsv"}.items()}  # fmt: skip
    held = str(collection / "validation.txt")
    return {
        "data": [{"name": "toy", **paths, "ids": [str(collection / "train.txt")], "licence": "CC-BY-SA-4.0"}],
        "held_out": [{"questions": paths["questions"], "ids": [held]}],
        "validation": {**paths, "ids": [held]},
    }
