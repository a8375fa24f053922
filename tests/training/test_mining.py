"""Mining with a generative retriever, and what training reads of it: nothing finds itself, and nothing wrong passes."""

import dataclasses
import errno
import json
import os
import shutil

import numpy as np
import pytest
import torch

from gr_components.data import check_inputs, normalise, read_candidates, write_candidates
from gr_components.data.candidates import path_hash, write_sidecar
from gr_components.data.files import read_objects, write_objects
from gr_components.decoding.grammar import Grammar, reserved_grammar
from gr_components.errors import ConfigError, DataError, ModelError, ProvenanceError, TokenizerMismatchError
from gr_components.models.seq2seq.building import build_seq2seq_from_encoder, cut_vocabulary
from gr_components.models.seq2seq.copying import CopyConfig
from gr_components.models.seq2seq.folder import load_seq2seq, save_seq2seq
from gr_training.config import parse
from gr_training.fitting import FitConfig
from gr_training.generative import mining
from gr_training.generative.key_scores import KeyBatches, key_log_probs
from gr_training.generative.mining import MineConfig, deal, mine_generative, queries_without
from gr_training.generative.rank_stage import RankConfig, score_lists
from gr_training.generative.ranking_lists import ListBatch, ListsConfig
from gr_training.generative.ranking_loss import LossConfig
from gr_training.mining import parts
from gr_training.mining.candidate_lists import read_lists
from gr_training.sources import SourceConfig, load_sources, texts_of

CONFIG = MineConfig(search={"beams": 4}, top_k=3, keys=6, folds=3)


@pytest.fixture(scope="module")
def questions(collection):
    files = {"corpus": "corpus.jsonl", "questions": "questions.jsonl", "qrels": "qrels.tsv"}
    paths = {name: str(collection / file) for name, file in files.items()}
    ids = [str(collection / "train.txt")]
    return load_sources([parse(SourceConfig, {"name": "toy", **paths, "ids": ids, "licence": "CC0-1.0"}, "x")])[0]


@pytest.fixture(scope="module")
def model(tiny_encoder, collection, tmp_path_factory):
    """A generative retriever with random weights, which copies from the question."""
    everything = [(collection / name).read_text() for name in ("corpus.jsonl", "questions.jsonl")]
    tokenizer, keep = cut_vocabulary(tiny_encoder, everything)
    torch.manual_seed(1)
    built = build_seq2seq_from_encoder(
        tiny_encoder, keep, decoder_layers=1, copy=CopyConfig(initial_gate=4.0),
        token_frequencies=np.ones(tokenizer.vocabulary_size),
    )  # fmt: skip
    folder = tmp_path_factory.mktemp("generator") / "model"
    grammar = reserved_grammar(tokenizer, body_tokens=4)
    save_seq2seq(built.eval(), tokenizer, {"grammar": grammar.to_dict()}, folder)
    return folder


@pytest.fixture(scope="module")
def loaded(model):
    from gr_components.decoding.grammar import read_grammar

    return read_grammar(model)


@pytest.fixture(scope="module")
def mined_once(model, questions, tmp_path_factory):
    path = tmp_path_factory.mktemp("mined") / "candidates.jsonl.gz"
    return mine_generative(model, questions, CONFIG, path, device="cpu")


@pytest.fixture
def mined(mined_once, tmp_path):
    for name in (mined_once.name, f"{mined_once.name}.meta.json"):
        shutil.copy(mined_once.with_name(name), tmp_path)
    sidecar = tmp_path / f"{mined_once.name}.meta.json"
    sidecar.write_text(sidecar.read_text().replace(str(mined_once), str(tmp_path / mined_once.name)))
    return tmp_path / mined_once.name


@pytest.fixture
def edited(mined):
    """Change lines of the mined file and write the sidecar again, as if it had been mined so."""

    def edit(change):
        lines = [data for _, data in read_objects(mined)]
        sidecar = json.loads(mined.with_name(f"{mined.name}.meta.json").read_text())
        change(lines)
        write_objects(mined, lines)
        write_sidecar(mined, made_by=sidecar["made_by"], hashes=sidecar["inputs"])
        return mined

    return edit


def test_questions_with_the_same_words_share_a_fold(questions):
    twice = [*questions.questions, *(dataclasses.replace(q, id=f"{q.id}x", text=q.text.upper() + " !")
                                     for q in questions.questions)]  # fmt: skip
    doubled = dataclasses.replace(questions, questions=twice, positives=questions.positives * 2)
    chunks = deal(doubled, CONFIG)
    fold_of = {row: chunk.fold for chunk in chunks for row in chunk.rows}
    count = len(questions.questions)
    assert sorted(fold_of) == list(range(2 * count))
    assert all(fold_of[row] == fold_of[row + count] for row in range(count))
    sizes = [sum(fold == number for fold in fold_of.values()) for number in range(3)]
    assert max(sizes) - min(sizes) <= 2
    assert deal(doubled, CONFIG) == chunks
    assert deal(doubled, dataclasses.replace(CONFIG, seed=14)) != chunks
    drawn = [row for chunk in deal(doubled, dataclasses.replace(CONFIG, questions=10)) for row in chunk.rows]
    assert len(set(drawn)) == 10


def test_no_index_holds_what_is_searched_over_it(questions):
    passages = [dataclasses.replace(p, queries=(f"about {p.title}",)) for p in questions.passages]
    target = questions.positives[0][0]
    passages[target] = dataclasses.replace(passages[target], queries=(questions.questions[0].text.lower() + "??",))
    with_queries = dataclasses.replace(questions, passages=passages)
    for fold in range(3):
        held_out = [row for chunk in deal(with_queries, CONFIG) if chunk.fold == fold for row in chunk.rows]
        held = set(held_out)
        indexed = queries_without(with_queries, held_out)
        words = {normalise(query) for several in indexed for query in several}
        assert not words & {normalise(questions.questions[row].text) for row in held}
        others = [row for row in range(len(questions.questions)) if row not in held]
        assert words >= {normalise(questions.questions[row].text) for row in others}
        assert sum(map(len, indexed)) == len(others) + len(passages) - (0 in held)


def test_no_identifier_of_a_question_comes_from_itself(model, questions, tmp_path):
    # So wide a beam writes every pseudo-query of the index, and the bias lets all of them count.
    search = {"beams": 64, "views": ["query"], "query_view_bias": 100.0}
    config = MineConfig(search=search, top_k=1, folds=2, questions=6)
    text_of = {question.id: normalise(question.text) for question in questions.questions}

    def found(name):
        several = list(read_candidates(mine_generative(model, questions, config, tmp_path / name, device="cpu")))
        pseudo = [(c.query, key) for c in several for key in c.keys]
        assert {key.view for _, key in pseudo} == {"query"}
        return several, {query for query, key in pseudo if normalise(key.text) == text_of[query]}

    several, own = found("candidates.jsonl.gz")
    assert not own
    # Positives below the first document are there too, under their own rank.
    assert all(c.label for c in several if c.rank > 1)
    assert any(c.rank > 2 for c in several)
    # With the fold's own questions in the index, all find themselves.
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(mining, "queries_without", lambda q, _: queries_without(q, []))
        several, own = found("leaking.jsonl")
    assert own == {c.query for c in several}


def test_what_is_mined(mined, questions, loaded):
    grammar, tokenizer = loaded
    ranked = {}
    for candidate in read_candidates(mined):
        ranked.setdefault(candidate.query, []).append(candidate)
    assert len(ranked) > 10
    positives = {q.id: {questions.passages[p].id for p in rows}
                 for q, rows in zip(questions.questions, questions.positives, strict=True)}  # fmt: skip
    for query, several in ranked.items():
        ranks = [c.rank for c in several]
        assert ranks[:3] == list(range(1, min(3, len(several)) + 1))
        assert ranks == sorted(ranks)
        assert [c.score for c in several] == sorted((c.score for c in several), reverse=True)
        assert all((c.label > 0) == (c.document in positives[query]) for c in several)
        assert all(c.label for c in several[3:])
        assert any(c.label for c in several)
        for candidate in several:
            assert len(candidate.keys) <= 6
            for key in candidate.keys:
                stop = grammar.view(key.view).stop
                assert (key.tokens[-1] == stop) == (stop is not None)
                assert tokenizer.decode([t for t in key.tokens if t != stop]).strip() == key.text
                assert 0.2 - 1e-6 <= key.cover <= 1
                assert key.count > 0
                assert key.prior > 0
    summary = check_inputs(mined)["summary"]
    assert summary["kept"] == len(ranked)
    assert (
        sum(summary[name] for name in summary if name != "questions")
        == summary["questions"]
        == len(questions.questions)
    )
    assert not (mined.parent / ".candidates.jsonl.gz.parts").exists()


def test_lists_rebuild_the_search_s_scores(mined, questions, loaded):
    grammar, tokenizer = loaded
    lists = read_lists(mined, questions, tokenizer, grammar)
    full = 0
    for each in lists:
        assert each.keys_DN.shape == each.cover_DN.shape == each.mask_DN.shape == each.prior_DN.shape
        assert len(set(each.keys)) == len(each.keys)
        assert each.keys_DN.max() == len(each.keys) - 1
        is_query_K = np.array([view == "query" for view, _ in each.keys])
        log_p_K = np.where(is_query_K, np.minimum(each.log_probs_K, -1.0), each.log_probs_K).astype(float)
        odds_K = log_p_K - np.log(-np.expm1(log_p_K)) + np.log1p(-each.priors_K) - np.log(each.priors_K)
        scores_D = (odds_K[each.keys_DN] ** 2 * each.cover_DN * each.mask_DN).sum(axis=1)
        whole_D = each.lengths_D < CONFIG.keys  # the others have more identifiers than were kept
        full += whole_D.sum()
        assert scores_D[whole_D] == pytest.approx(each.scores_D[whole_D], rel=1e-4)
        assert (scores_D <= each.scores_D * (1 + 1e-4)).all()
        assert (each.labels_D > 0).any()
        assert (each.labels_D == 0).any()
    assert full
    fewer = read_lists(mined, questions, tokenizer, grammar, keys=2)
    assert max(each.keys_DN.shape[1] for each in fewer) == 2
    assert fewer[0].keys[int(fewer[0].keys_DN[0, 0])] == lists[0].keys[int(lists[0].keys_DN[0, 0])]


def test_covers_of_the_released_code(model, questions, loaded, tmp_path):
    """All identifiers of a passage: 1 - beta + beta * (share of tokens that none of the better ones has)."""
    grammar, tokenizer = loaded
    config = MineConfig(search={"beams": 40}, top_k=6, keys=64, folds=2)
    paths = [tmp_path / f"{cover}.candidates.jsonl.gz" for cover in ("search", "released")]
    for path, cover in zip(paths, ("search", "released"), strict=True):
        mine_generative(model, questions, dataclasses.replace(config, cover=cover), path, device="cpu")
    path, more = paths[1], 0
    known = {(c.query, c.document): {key.tokens for key in c.keys} for c in read_candidates(paths[0])}
    for each in read_candidates(path):
        used: set[int] = set()
        for key in each.keys:
            view = grammar.view(key.view)
            tokens = {*view.index_prefix, *key.tokens}
            assert key.cover == pytest.approx(0.2 + 0.8 * len(tokens - used) / len(tokens), abs=1e-6)
            used |= tokens
        more += len({key.tokens for key in each.keys} - known[each.query, each.document])
    assert more, "none was overlapped, so that the two covers cannot be told apart"
    assert read_lists(path, questions, tokenizer, grammar)


def test_training_scores_are_those_of_the_search(model, questions, tmp_path):
    """What the model itself gives the mined identifiers, pseudo-queries with the search's bias and cap among them."""
    search = {"beams": 40, "query_view_bias": 30.0, "query_view_cap": -2.0}
    config = MineConfig(search=search, top_k=6, keys=64, folds=2)
    path = mine_generative(model, questions, config, tmp_path / "candidates.jsonl.gz", device="cpu")
    trained = load_seq2seq(str(model), device="cpu")
    grammar = Grammar.from_dict(trained.info["grammar"])
    lists = read_lists(path, questions, trained.tokenizer, grammar)
    sources = trained.tokenizer.encode([questions.questions[each.question].text for each in lists])
    batch = ListBatch(ListsConfig(length=6, positives=1, keys=64))
    for each in lists:
        batch.add(each, np.random.default_rng(0))
    made = {"lists": batch.tensors(), "keys": KeyBatches(trained.tokenizer, grammar).make(sources, batch.keys)}
    mined_BD, real_BD = made["lists"]["mined_BD"], made["lists"]["real_BD"]
    assert made["lists"]["mask_BDN"].sum(-1).max() < 64, "no identifier was left out"
    log_probs_BK = key_log_probs(trained.model, made["keys"]).detach()
    is_query_BK = made["lists"]["cap_BK"] == -2
    capped_BK = is_query_BK & (log_probs_BK + 30 > -2)
    assert capped_BK.any()
    assert (is_query_BK & ~capped_BK).any()
    scores = {}
    for query_view in ("search", "plain"):
        loss = LossConfig(kind="ltrgr", query_view=query_view)
        rank = RankConfig(loss=loss, likelihood_weight=0.0, fit=FitConfig(steps=1))
        scores[query_view] = score_lists(trained.model, made, rank)
    assert scores["search"][real_BD].tolist() == pytest.approx(mined_BD[real_BD].tolist(), rel=1e-3)
    assert not torch.allclose(scores["plain"], mined_BD, rtol=0.05), "the limits change nothing here"


def test_answers_as_labels(model, questions, tmp_path):
    config = dataclasses.replace(CONFIG, label_by="answer_string")
    path = mine_generative(model, questions, config, tmp_path / "c.jsonl", device="cpu")
    texts = {passage.id: passage.text for passage in questions.passages}
    answers = {question.id: question.answers[0] for question in questions.questions}
    seen = list(read_candidates(path))
    assert {c.label_source for c in seen} == {"answer_string"}
    assert all(c.label == (answers[c.query] in texts[c.document]) for c in seen)
    silent = dataclasses.replace(questions, questions=[dataclasses.replace(q, answers=()) for q in questions.questions])
    with pytest.raises(DataError, match="no question of 'toy' has answers"):
        mine_generative(model, silent, config, tmp_path / "d.jsonl", device="cpu")


def test_a_killed_run_goes_on_where_it_was(model, questions, mined, tmp_path, monkeypatch):
    monkeypatch.setattr(mining, "_PART", 4)
    path, seen = tmp_path / "again.jsonl.gz", []
    write = parts.Parts.write

    def killed(self, number, *arguments):
        if number == 3 and -1 not in seen:
            raise KeyboardInterrupt
        seen.append(number)
        write(self, number, *arguments)

    monkeypatch.setattr(parts.Parts, "write", killed)
    with pytest.raises(KeyboardInterrupt):
        mine_generative(model, questions, CONFIG, path, device="cpu")
    assert not path.exists()
    seen.append(-1)
    mine_generative(model, questions, CONFIG, path, device="cpu")
    total = len(deal(questions, CONFIG))
    assert seen == [0, 1, 2, -1, *range(3, total)]
    # Questions of a batch are padded together, which moves the last digits of log-probabilities.
    one, two = list(read_candidates(path)), list(read_candidates(mined))
    assert [(c.query, c.document, c.label) for c in one] == [(c.query, c.document, c.label) for c in two]
    assert [c.score for c in one] == pytest.approx([c.score for c in two], rel=1e-3)
    seen[:] = [-1]
    mine_generative(model, questions, CONFIG, path, device="cpu")
    assert seen == [-1], "a finished file is not made again"
    mine_generative(model, questions, dataclasses.replace(CONFIG, top_k=2), path, device="cpu")
    assert len(seen) == total + 1, "other settings make another file"


@pytest.mark.parametrize("finished", [2, "a fold"])
def test_a_full_disk_keeps_what_is_finished(finished, model, questions, tmp_path, monkeypatch):
    monkeypatch.setattr(mining, "_PART", 4)
    path = tmp_path / "candidates.jsonl.gz"
    sync, where = os.fsync, "questions 'q.*' to 'q.*'"
    if finished == "a fold":
        finished = sum(chunk.fold == 0 for chunk in deal(questions, CONFIG))
        where = "index without fold 2"

    def full(descriptor):
        if len(list(path.parent.glob(".*.parts/part-*.json"))) >= finished:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", full)
    pattern = rf"candidates\.jsonl\.gz', {where}: the disk is full .* {finished} finished parts are kept"
    with pytest.raises(DataError, match=pattern):
        mine_generative(model, questions, CONFIG, path, device="cpu")
    monkeypatch.setattr(os, "fsync", sync)
    kept = sorted((tmp_path / ".candidates.jsonl.gz.parts").glob("part-*.jsonl.gz"))
    assert len(kept) == finished
    written, write = [], parts.Parts.write
    monkeypatch.setattr(
        parts.Parts, "write", lambda self, number, *rest: (written.append(number), write(self, number, *rest))
    )
    mine_generative(model, questions, CONFIG, path, device="cpu")
    assert written == list(range(finished, len(deal(questions, CONFIG))))


def test_bad_settings_and_models(model, questions, tiny_encoder, tmp_path):
    with pytest.raises(ConfigError, match=r"search: unknown key 'beam_width'\. Did you mean"):
        mine_generative(model, questions, MineConfig(search={"beam_width": 3}), tmp_path / "c.jsonl")
    with pytest.raises(ModelError, match="no generative retriever"):
        mine_generative(tiny_encoder, questions, CONFIG, tmp_path / "c.jsonl")
    with pytest.raises(ValueError, match="folds"):
        MineConfig(folds=1)
    alone = dataclasses.replace(questions, passages=questions.passages[:1], questions=questions.questions[:2],
                                positives=[[0], [0]])  # fmt: skip
    with pytest.raises(DataError, match=r"none of the 2 questions has a positive and a negative.*'without_negative'"):
        mine_generative(model, alone, CONFIG, tmp_path / "c.jsonl", device="cpu")


def test_lists_of_another_model_or_corpus_are_refused(mined, model, questions, loaded, tmp_path, tiny_encoder):
    grammar, tokenizer = loaded
    assert read_lists(mined, questions, tokenizer, grammar, model=model)
    longer = Grammar.from_dict({**grammar.to_dict(), "max_source": 80})
    with pytest.raises(TokenizerMismatchError, match="another identifier grammar"):
        read_lists(mined, questions, tokenizer, longer)
    other, _ = cut_vocabulary(tiny_encoder, texts_of([questions])[:3])
    with pytest.raises(TokenizerMismatchError, match="was mined with the tokenizer"):
        read_lists(mined, questions, other, grammar)
    changed = dataclasses.replace(questions, files={**questions.files, "corpus.jsonl": "0" * 64})
    with pytest.raises(ProvenanceError, match=r"not made from 'corpus\.jsonl'"):
        read_lists(mined, changed, tokenizer, grammar)
    assert path_hash(tiny_encoder) != path_hash(model)
    with pytest.raises(ProvenanceError, match="mined by another checkpoint"):
        read_lists(mined, questions, tokenizer, grammar, model=tiny_encoder)
    write_candidates(tmp_path / "plain.jsonl", [], made_by={"mining": {}}, inputs=[])
    with pytest.raises(ProvenanceError, match="has no identifiers"):
        read_lists(tmp_path / "plain.jsonl", questions, tokenizer, grammar)


def _label_all(value):
    def change(lines):
        for line in lines:
            if line["query"] == lines[0]["query"]:
                line["label"] = value

    return change


def _key(place, value):
    def change(lines):
        lines[1]["keys"][0][place] = value

    return change


def _set(**values):
    return lambda lines: lines[1].update(values)


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (_label_all(0), r"line 1: the list of question 'q.*' has no positive"),
        (_label_all(1), r"line 1: the list of question 'q.*' has no negative"),
        (_set(label=None, label_source=None), "line 2: label must be a whole number, got None"),
        (_set(score=float("nan")), "line 2: score must be a number, got nan"),
        (_set(document="elsewhere"), "line 2: there is no passage 'elsewhere'"),
        (lambda lines: lines[1].update(document=lines[0]["document"]), "line 2: passage 'p.*' is there twice"),
        (lambda lines: lines.append(lines[0]), r"line \d+: more of question 'q.*', which ended before"),
        (lambda lines: [line.update(query="q") for line in lines], "line 1: there is no question 'q'"),
        (_key(1, "code"), "line 2: the model has no view 'code'"),
        (_key(3, 0), "line 2: the identifier '.*' occurs 0 times in the index"),
        (_key(4, []), "line 2: the identifier '.*' has no tokens, cover or prior"),
        (_key(6, 0.0), r"line 2: the identifier '.*' occurs \d+ times in the index \(share 0.0\)"),
        (_key(2, float("nan")), "line 2: the identifier '.*' has cover .* and nan nats"),
        (_key(2, 3), r"line 2: the identifier '.*' has cover .* and 3 nats \(0 at most\)"),
        (_key(2, -(10**400)), r"line 2: the identifier '.*' has cover .* nats"),
        (_key(4, [10**7]), r"line 2: the identifier '.*' must have tokens between 0 and \d+, got \[10000000\]"),
        (_key(4, [5, -3]), r"line 2: the identifier '.*' must have tokens between 0 and \d+, got \[5, -3\]"),
        (_key(4, "abc"), r"line 2: not a candidate \(the tokens of the identifier '.*' must be .*, got 'abc'"),
        (_key(3, None), r"line 2: not a candidate \(the count of the identifier"),
        (_key(5, 1.2), r"line 2: the identifier '.*' has cover 1.2 \(of 0 to 1\)"),
        (_key(6, "x"), r"line 2: not a candidate \(the prior of the identifier"),
        (_set(teachers=None), r"line 2: not a candidate \(teachers must be a mapping"),
        (_set(score=10**400), "line 2: score must be a number, got 1000"),
        (_set(label=10**30), "line 2: label must be a grade up to"),
        (lambda lines: [line["teachers"].update(t=1.0) for line in lines[1:]], "line 1: teacher 't' .* got nothing"),
        (lambda lines: [line["teachers"].update(t=1.0 if n != 1 else float("nan")) for n, line in enumerate(lines)],
         "line 2: teacher 't' must give a number, got nan"),
        (lambda lines: lines.clear(), "has no candidates"),
    ],
)  # fmt: skip
def test_bad_lines_are_refused(edited, questions, loaded, change, problem):
    grammar, tokenizer = loaded
    path = edited(change)
    with pytest.raises(DataError, match=problem) as caught:
        read_lists(path, questions, tokenizer, grammar)
    assert str(path) in str(caught.value)


def test_teachers_that_are_asked_for_must_be_there(mined, questions, loaded):
    grammar, tokenizer = loaded
    with pytest.raises(DataError, match="line 1: teacher 'ranker' must give a number, got nothing"):
        read_lists(mined, questions, tokenizer, grammar, teachers=["ranker"])


def test_a_question_that_is_a_pseudo_query_already_counts_once(questions):
    first = questions.positives[0][0]
    passages = list(questions.passages)
    passages[first] = dataclasses.replace(passages[first], queries=(questions.questions[0].text, "What else?"))
    indexed = queries_without(dataclasses.replace(questions, passages=passages), [])[first]
    assert indexed[:2] == [questions.questions[0].text, "What else?"]
    assert len(indexed) == len(set(indexed)) == 1 + sum(first in rows for rows in questions.positives)


def test_a_changed_file_is_refused(mined, questions, loaded):
    grammar, tokenizer = loaded
    mined.write_bytes(mined.read_bytes() + b"\0")
    with pytest.raises(ProvenanceError, match=r"candidates\.jsonl\.gz' changed"):
        read_lists(mined, questions, tokenizer, grammar)
