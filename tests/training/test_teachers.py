"""Teachers: the same texts as the student, several side by side, and no gap unnoticed."""

import shutil

import pytest

from gr_components.data import (
    Candidate,
    Key,
    check_inputs,
    read_candidates,
    searchable_text,
    write_candidates,
    write_run,
)
from gr_components.errors import ConfigError, DataError, ProvenanceError
from gr_components.models.pair_scorer import load_pair_scorer
from gr_components.models.resolve import MINILM
from gr_components.models.text_encoder import load_text_encoder
from gr_components.progress import Silent
from gr_training.config import parse
from gr_training.mining import parts, teachers
from gr_training.mining.lists import lexical_search
from gr_training.mining.teachers import TeacherConfig, teach
from gr_training.sources import ValidationConfig, load_validation, local_file

KEYS = (Key("mayor", "body", -1.0, 3, (5,), 1.0, 0.1),)


@pytest.fixture
def questions(sources):
    return load_validation(parse(ValidationConfig, sources["validation"], "x"))


@pytest.fixture
def mined(questions, tmp_path):
    path = tmp_path / "candidates.jsonl.gz"
    candidates = [
        Candidate(question.id, questions.passages[p].id, rank, 9.0 - rank, int(rank == 1), "qrels", KEYS)
        for question, (positive,) in zip(questions.questions, questions.positives, strict=True)
        for rank, p in enumerate((positive, (positive + 5) % 48, (positive + 9) % 48), start=1)
    ]
    inputs = [local_file(name) for name in questions.files]
    write_candidates(path, candidates, made_by={"stage": "mine"}, inputs=inputs)
    return path


def config(**values):
    return parse(TeacherConfig, {"name": "t", **values}, "teacher")


def overlap(pairs):
    return [len(set(a.lower().split()) & set(b.lower().split())) for a, b in pairs]


def test_teachers_side_by_side_score_title_and_text(mined, questions, tiny_ranker_model, tmp_path):
    run = {q.id: [(p.id, float(n)) for n, p in enumerate(questions.passages)] for q in questions.questions}
    write_run(tmp_path / "a.run", run)
    several = [
        config(name="ranker", kind="cross_encoder", model=str(tiny_ranker_model)),
        config(name="dense", kind="bi_encoder", model=MINILM),
        config(name="e5", kind="bi_encoder", model=MINILM, query_prefix="query: ", passage_prefix="passage: "),
        config(name="file", kind="run", run=str(tmp_path / "a.run")),
    ]
    path = teach(mined, tmp_path / "taught.jsonl.gz", several, questions, functions={"overlap": overlap}, device="cpu")
    before, after = list(read_candidates(mined)), list(read_candidates(path))
    assert [(c.query, c.document, c.rank, c.score, c.label, c.keys) for c in before] == [
        (c.query, c.document, c.rank, c.score, c.label, c.keys) for c in after
    ]
    assert all(list(c.teachers) == ["ranker", "dense", "e5", "file", "overlap"] for c in after)
    text_of = {p.id: searchable_text(p.title, p.text) for p in questions.passages}
    asked = {q.id: q.text for q in questions.questions}
    pairs = [(asked[c.query], text_of[c.document]) for c in after]
    scorer = load_pair_scorer(str(tiny_ranker_model), device="cpu")
    assert [c.teachers["ranker"] for c in after] == pytest.approx(scorer.score(pairs), abs=1e-4)
    encoder = load_text_encoder(MINILM, device="cpu")
    vectors = [encoder.encode([pair[side] for pair in pairs[:12]]) for side in (0, 1)]
    assert [c.teachers["dense"] for c in after[:12]] == pytest.approx((vectors[0] * vectors[1]).sum(axis=1), abs=1e-4)
    vectors = [encoder.encode([pair[side] for pair in pairs[:12]], prefix=name)
               for side, name in enumerate(("query: ", "passage: "))]  # fmt: skip
    assert [c.teachers["e5"] for c in after[:12]] == pytest.approx((vectors[0] * vectors[1]).sum(axis=1), abs=1e-4)
    assert [c.teachers["file"] for c in after] == [float(c.document[1:]) for c in after]
    assert [c.teachers["overlap"] for c in after] == overlap(pairs)
    made_by = check_inputs(path)["made_by"]
    assert made_by["mined"] == {"stage": "mine"}
    # A third file on top keeps what the second has.
    more = teach(path, tmp_path / "more.jsonl.gz", [], questions, functions={"again": overlap})
    assert set(next(read_candidates(more)).teachers) == {"ranker", "dense", "e5", "file", "overlap", "again"}
    assert check_inputs(more)["made_by"]["mined"] == {"stage": "mine"}


@pytest.fixture
def tiny_ranker_model(tiny_encoder, tmp_path):
    import torch
    from transformers import BertConfig, BertForSequenceClassification

    from gr_components.tokenization import TextTokenizer

    torch.manual_seed(0)
    tokenizer = TextTokenizer.from_folder(tiny_encoder)
    shape = BertConfig(vocab_size=tokenizer.vocabulary_size, hidden_size=16, num_hidden_layers=1,
                       num_attention_heads=2, intermediate_size=16, max_position_embeddings=128, num_labels=1,
                       initializer_range=0.4)  # fmt: skip
    BertForSequenceClassification(shape).save_pretrained(tmp_path / "ranker")
    tokenizer.save(tmp_path / "ranker")
    return tmp_path / "ranker"


def test_gaps_and_nan_are_refused_with_the_line(mined, questions, tmp_path):
    target = tmp_path / "taught.jsonl.gz"
    first = list(read_candidates(mined))
    run = {}
    for candidate in first:
        run.setdefault(candidate.query, []).append((candidate.document, 1.0 + candidate.rank))
    run[first[3].query] = run[first[3].query][1:]
    write_run(tmp_path / "a.run", run)
    with pytest.raises(
        DataError, match=rf"candidates\.jsonl\.gz, line 4: teacher 't' .*'{first[3].document}', but nothing"
    ):
        teach(mined, target, [config(kind="run", run=str(tmp_path / "a.run"))], questions)
    lowest = teach(mined, target, [config(kind="run", run=str(tmp_path / "a.run"), missing="lowest")], questions)
    assert [c.teachers["t"] for c in read_candidates(lowest)][:6] == [2.0, 3.0, 4.0, 3.0, 3.0, 4.0]
    for bad, shown in ((float("nan"), "nan"), (float("inf"), "inf")):
        with pytest.raises(DataError, match=rf"line 2: teacher 'bad' .* but {shown}"):
            teach(mined, tmp_path / "b.jsonl", [], questions,
                  functions={"bad": lambda pairs, bad=bad: [1.0, bad, *[0.0] * (len(pairs) - 2)]})  # fmt: skip
    with pytest.raises(DataError, match=r"teacher 'short' gave \d+ scores for \d+ lines"):
        teach(mined, tmp_path / "b.jsonl", [], questions, functions={"short": lambda pairs: overlap(pairs)[1:]})


@pytest.mark.parametrize("kind", ["cross_encoder", "bi_encoder"])
def test_a_model_that_gives_nan_is_named_with_the_line(
    kind, mined, questions, tiny_ranker_model, tiny_encoder, tmp_path
):
    from safetensors.torch import load_file, save_file

    from gr_components.tokenization import TextTokenizer

    lines, asked = list(read_candidates(mined)), {q.id: q.text for q in questions.questions}
    text_of = {p.id: searchable_text(p.title, p.text) for p in questions.passages}
    tokenizer = TextTokenizer.from_folder(tiny_encoder)
    texts = [f"{asked[c.query]} {text_of[c.document]}" for c in lines]
    tokens = [set(several) for several in tokenizer.encode(texts)]
    place = next(n for n in range(10, len(lines)) if tokens[n] - set.union(*tokens[:n]))  # has what no line before has
    token = min(tokens[place] - set.union(*tokens[:place]))
    shutil.copytree(tiny_ranker_model if kind == "cross_encoder" else tiny_encoder, tmp_path / "nan")
    state = load_file(tmp_path / "nan" / "model.safetensors")
    (name,) = [name for name in state if name.endswith("word_embeddings.weight")]
    state[name][token] = float("nan")
    save_file(state, tmp_path / "nan" / "model.safetensors", metadata={"format": "pt"})
    where = rf"candidates\.jsonl\.gz, line {place + 1}: teacher 't' has no number for question '{lines[place].query}'"
    with pytest.raises(DataError, match=rf"{where} and passage '{lines[place].document}'\. The model gave NaN"):
        teach(mined, tmp_path / "b.jsonl", [config(kind=kind, model=str(tmp_path / "nan"))], questions, device="cpu")


def test_bm25_scores_what_it_finds_and_0_elsewhere(mined, questions, tmp_path):
    path = teach(mined, tmp_path / "taught.jsonl.gz", [config(kind="bm25")], questions)
    found = lexical_search(questions, len(questions.passages), "english", Silent())
    row_of = {passage.id: row for row, passage in enumerate(questions.passages)}
    scores = {q.id: dict(several) for q, several in zip(questions.questions, found, strict=True)}
    wanted = [scores[c.query].get(row_of[c.document], 0.0) for c in read_candidates(path)]
    assert [c.teachers["t"] for c in read_candidates(path)] == pytest.approx(wanted)
    assert 0.0 in wanted


def test_a_killed_run_goes_on_where_it_was(mined, questions, tmp_path, monkeypatch):
    monkeypatch.setattr(teachers, "_PART", 4)
    monkeypatch.setattr(teachers, "_AT_ONCE", 2)
    target, seen = tmp_path / "taught.jsonl.gz", []

    def scores(pairs):
        seen.append(len(pairs))
        if len(seen) == 6:
            raise KeyboardInterrupt
        return overlap(pairs)

    with pytest.raises(KeyboardInterrupt):
        teach(mined, target, [], questions, functions={"t": scores})
    assert not target.exists()
    seen[:] = [0] * 100
    teach(mined, target, [], questions, functions={"t": scores})
    lines = len(list(read_candidates(mined)))
    assert sum(seen) == lines - 2 * 4 * 3, "two parts were finished"
    assert len(list(read_candidates(target))) == lines
    monkeypatch.setattr(parts.Parts, "__init__", lambda *_, **__: pytest.fail("made again"))
    teach(mined, target, [], questions, functions={"t": scores})


def test_what_does_not_fit_is_refused(mined, questions, tmp_path):
    target = tmp_path / "taught.jsonl"
    with pytest.raises(ConfigError, match=r"different names.*\['t', 't'\]"):
        teach(mined, target, [config(kind="run", run="a")], questions, functions={"t": overlap})
    with pytest.raises(ConfigError, match="would replace what it is made from"):
        teach(mined, mined, [], questions, functions={"t": overlap})
    teach(mined, target, [], questions, functions={"t": overlap})
    with pytest.raises(ConfigError, match=r"has \['t'\] already"):
        teach(target, tmp_path / "more.jsonl", [], questions, functions={"t": overlap})
    with pytest.raises(ConfigError, match=r"kind 'run' needs run, got \['model'\]"):
        config(kind="run", model="x")
    with pytest.raises(ConfigError, match="kind 'bm25' needs neither model nor run"):
        config(kind="bm25", run="x")
    with pytest.raises(ConfigError, match="kind 'bi_encoder' needs model, got none"):
        config(kind="bi_encoder")
    mined.write_bytes(mined.read_bytes() + b"\0")
    with pytest.raises(ProvenanceError, match="changed since"):
        teach(target, tmp_path / "more.jsonl", [], questions, functions={"u": overlap})


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"kind": "bm25", "query_prefix": "query: "}, "query_prefix is for teachers of kind 'bi_encoder'. 't' is of"),
        ({"kind": "bm25", "similarity": "dot"}, "similarity is for teachers of kind 'bi_encoder'"),
        ({"kind": "cross_encoder", "model": "m", "similarity": "dot"}, "similarity is for .* of kind 'cross_encoder'"),
        ({"kind": "bm25", "missing": "lowest"}, "missing is for teachers of kind 'run'"),
        ({"kind": "bi_encoder", "model": "m", "language": "german"}, "language is for teachers of kind 'bm25'"),
        ({"kind": "run", "run": "r", "dtype": "float16"}, "dtype is for .* 'cross_encoder' or 'bi_encoder'"),
        ({"kind": "run", "run": "r", "batch_size": 8, "similarity": "dot"}, "similarity is for .*; batch_size is for"),
    ],
)  # fmt: skip
def test_settings_that_do_nothing_are_refused(settings, message):
    with pytest.raises(ConfigError, match=message):
        config(**settings)


def test_candidates_of_another_set_are_refused(questions, tmp_path):
    path = tmp_path / "c.jsonl"
    write_candidates(path, [], made_by={"stage": "mine"}, inputs=[])
    with pytest.raises(ProvenanceError, match="but from other data"):
        teach(path, tmp_path / "d.jsonl", [], questions, functions={"t": overlap})
