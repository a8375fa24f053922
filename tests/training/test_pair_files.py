"""Pairs as a file: what is read is what was drawn."""

import pytest

from gr_components.data.candidates import check_inputs, write_sidecar
from gr_components.data.files import read_objects, write_objects
from gr_components.decoding.grammar import Grammar, reserved_grammar
from gr_components.errors import DataError, ProvenanceError, TokenizerMismatchError
from gr_components.tokenization import TextTokenizer
from gr_training.config import parse
from gr_training.generative import pair_files
from gr_training.generative.identifier_batches import IdentifierBatches
from gr_training.generative.pair_files import PairFileConfig, read_pairs, write_pairs
from gr_training.generative.pairs import PairsConfig
from gr_training.sources import SourceConfig, load_sources

SHAPE = PairsConfig(body=2, title=1, query=1, span_tokens=5)


@pytest.fixture
def sets(sources):
    return load_sources([parse(SourceConfig, {**sources["data"][0], "weight": 2.0}, "x")])


@pytest.fixture
def tokenizer(tiny_encoder):
    return TextTokenizer.from_folder(tiny_encoder)


@pytest.fixture
def grammar(tokenizer):
    return reserved_grammar(tokenizer)


@pytest.fixture
def written(sets, tokenizer, grammar, tmp_path):
    return write_pairs(tmp_path / "pairs.jsonl.gz", sets, tokenizer, grammar, SHAPE, PairFileConfig(per_question=3))


def test_what_is_read_is_what_was_drawn(written, sets, tokenizer, grammar):
    found = read_pairs(written, tokenizer, grammar)
    drawn = list(pair_files._drawn(sets, pair_files.PairSampler(sets, tokenizer, grammar, SHAPE),
                                   PairFileConfig(per_question=3)))  # fmt: skip
    assert found.pairs == [pair for *_, pair in drawn]
    assert len(found.pairs) == 3 * len(sets[0].questions)
    assert set(found.weights) == {2.0}
    assert found.num_short == 3
    questions = {tuple(ids) for ids in tokenizer.encode([q.text for q in sets[0].questions])}
    supervised = sum(tuple(pair.source) in questions for pair in found.pairs)
    assert 0.6 < supervised / len(found.pairs) < 0.9, "the share 'unsupervised' is .25"
    groups = IdentifierBatches(tokenizer, grammar).groups(found.pairs[:4], found.num_short)
    assert [block["targets_RT"].shape[0] for block in groups[0]["blocks"]] == [12, 4]


def test_a_full_disk_leaves_nothing_half(sets, tokenizer, grammar, tmp_path, file_size_limit):
    with file_size_limit(300), pytest.raises(OSError, match="File too large"):
        write_pairs(tmp_path / "pairs.jsonl.gz", sets, tokenizer, grammar, SHAPE, PairFileConfig(per_question=3))
    assert not list(tmp_path.glob("*pairs*"))


def test_the_texts_can_be_read(written, sets, tokenizer):
    passages = " ".join(passage.text.lower() for passage in sets[0].passages)
    for _, line in read_objects(written):
        body = [text for view, text, _ in line["targets"] if view == "body"]
        assert all(tokenizer.encode([text])[0] == tokens for _, text, tokens in line["targets"][:2])
        assert any(text.split(" .")[0] in passages for text in body)


def test_a_file_is_written_once_and_again_for_other_settings(written, sets, tokenizer, grammar, monkeypatch):
    before = written.read_bytes()
    write_pairs(written, sets, tokenizer, grammar, SHAPE, PairFileConfig(per_question=3, seed=14))
    other = written.read_bytes()
    assert other != before
    write_pairs(written, sets, tokenizer, grammar, SHAPE, PairFileConfig(per_question=3))
    assert written.read_bytes() == before
    monkeypatch.setattr(pair_files, "PairSampler", lambda *_: pytest.fail("drawn again"))
    write_pairs(written, sets, tokenizer, grammar, SHAPE, PairFileConfig(per_question=3))


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda line: line.pop("weight"), "line 2: not a pair"),
        (lambda line: line["targets"][0].__setitem__(0, "code"), r"line 2: not a pair .*'code'"),
        (lambda line: line["targets"].pop(), "line 2: 3 identifiers, the others have 4"),
        (lambda line: line["source_tokens"].append(10**6), "line 2: tokens must be between 0 and"),
        (lambda line: line["targets"][0][2].clear(), "line 2: tokens must be between"),
    ],
)
def test_bad_lines_are_named(written, tokenizer, grammar, change, problem):
    sidecar = check_inputs(written)
    lines = [line for _, line in read_objects(written)]
    change(lines[1])
    write_objects(written, lines)
    write_sidecar(written, made_by=sidecar["made_by"], hashes=sidecar["inputs"])
    with pytest.raises(DataError, match=problem):
        read_pairs(written, tokenizer, grammar)


def test_other_tokenizers_files_and_changes_are_refused(written, sets, tokenizer, grammar, minilm, tmp_path):
    with pytest.raises(TokenizerMismatchError, match="was written with the tokenizer"):
        read_pairs(written, TextTokenizer.from_folder(minilm), grammar)
    with pytest.raises(TokenizerMismatchError, match=r"pairs\.jsonl\.gz' was written with another identifier grammar"):
        read_pairs(written, tokenizer, Grammar.from_dict({**grammar.to_dict(), "max_source": 80}))
    write_objects(tmp_path / "other.jsonl", [])
    write_sidecar(tmp_path / "other.jsonl", made_by={"stage": "mine"}, hashes={})
    with pytest.raises(ProvenanceError, match="holds no pairs: it was made by 'mine'"):
        read_pairs(tmp_path / "other.jsonl", tokenizer, grammar)
    written.write_bytes(written.read_bytes() + b"\0")
    with pytest.raises(ProvenanceError, match="changed since"):
        read_pairs(written, tokenizer, grammar)
