"""Mining with the grammar of BART: one field with markers, view names in the encoder's input."""

from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch

from gr_components.data import Passage, Question, normalise, read_candidates
from gr_components.decoding.grammar import Grammar, layout_documents
from gr_components.models.seq2seq.folder import LoadedSeq2Seq, load_seq2seq, save_seq2seq
from gr_training.fitting import FitConfig
from gr_training.generative.key_scores import KeyBatches, key_log_probs
from gr_training.generative.mining import MineConfig, deal, mine_generative, queries_without
from gr_training.generative.rank_stage import RankConfig, score_lists
from gr_training.generative.ranking_lists import ListBatch, ListsConfig
from gr_training.generative.ranking_loss import LossConfig
from gr_training.mining.candidate_lists import read_lists
from gr_training.sources import QuestionSet

# A bias that lets pseudo-queries of a barely trained model count, and a cap that some of them reach.
BIAS, CAP = 3.0, -1.0
CONFIG = MineConfig(search={"beams": 12, "query_view_bias": BIAS, "query_view_cap": CAP}, top_k=6, keys=64, folds=3)
NUM_PASSAGES, KEYS = 12, 64


@pytest.fixture(scope="module")
def tiny(load_script: Callable[[Path], ModuleType]) -> ModuleType:
    return load_script(Path(__file__).with_name("tiny_lists.py"))


@pytest.fixture(scope="module")
def questions(tiny: ModuleType) -> QuestionSet:
    """Passages of 12 words with titles of two, and two questions about each."""
    rng = np.random.default_rng(0)

    def words(count: int) -> str:
        return " ".join(rng.choice(tiny.WORDS, count))

    passages = [Passage(f"p{n}", words(2), words(12)) for n in range(NUM_PASSAGES)]
    asked = [Question(f"q{n}-{i}", words(4)) for n in range(NUM_PASSAGES) for i in range(2)]
    positives = [[n // 2] for n in range(len(asked))]
    qrels = {question.id: {f"p{rows[0]}": 1} for question, rows in zip(asked, positives, strict=True)}
    return QuestionSet("toy", passages, asked, positives, qrels)


@pytest.fixture(scope="module")
def model(tiny: ModuleType, questions: QuestionSet, tmp_path_factory: pytest.TempPathFactory) -> LoadedSeq2Seq:
    """A BART of two layers that has seen a few titles, beginnings and questions: a random one writes no title."""
    tokenizer, grammar, built = tiny.tokenizer_of("bart"), tiny.grammar_of("bart"), tiny.model_of("bart")
    encoded = tokenizer.encode([question.text for question in questions.questions])
    keys = []
    for row, (passage,) in enumerate(questions.positives):
        title, text = tokenizer.encode([questions.passages[passage].title, questions.passages[passage].text])
        other = encoded[row ^ 1]  # the other question about the passage
        keys.append(
            [("title", (*title, grammar.title_end)), ("body", text[:4]), ("query", (*other, grammar.title_end))]
        )
    batch = KeyBatches(tokenizer, grammar).make(encoded, keys)
    optimiser = torch.optim.AdamW(built.parameters(), lr=3e-3)
    for _ in range(30):
        optimiser.zero_grad()
        (-key_log_probs(built, batch).mean()).backward()
        optimiser.step()
    folder = tmp_path_factory.mktemp("generator") / "model"
    save_seq2seq(built.eval(), tokenizer, {"grammar": grammar.to_dict()}, folder)
    return load_seq2seq(str(folder), device="cpu")


@pytest.fixture(scope="module")
def mined(model: LoadedSeq2Seq, questions: QuestionSet, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("mined") / "candidates.jsonl.gz"
    return mine_generative(model.folder, questions, CONFIG, path, device="cpu")


def text_of(grammar: Grammar, model: LoadedSeq2Seq, passage: Passage, queries: list[str]) -> list[int]:
    """The index's only field, with the boundary that stands before a document."""
    (document,) = layout_documents([0], [passage.title], [passage.text], [queries], grammar, model.tokenizer)
    return [grammar.boundary, *document.entries["text"][0]]


def test_identifiers_stand_in_their_passages(model: LoadedSeq2Seq, questions: QuestionSet, mined: Path) -> None:
    grammar = Grammar.from_dict(model.info["grammar"])
    rows = {question.id: row for row, question in enumerate(questions.questions)}
    passages = {passage.id: row for row, passage in enumerate(questions.passages)}
    fold_of = {row: chunk.fold for chunk in deal(questions, CONFIG) for row in chunk.rows}
    seen: dict[str, int] = {}
    for candidate in read_candidates(mined):
        row, passage = rows[candidate.query], passages[candidate.document]
        held_out = [other for other, fold in fold_of.items() if fold == fold_of[row]]
        text = text_of(grammar, model, questions.passages[passage], queries_without(questions, held_out)[passage])
        for key in candidate.keys:
            view = grammar.view(key.view)
            whole = [*view.index_prefix, *key.tokens]
            places = [p for p in range(len(text)) if text[p : p + len(whole)] == whole]
            assert places, (key, text)
            assert key.view != "title" or places == [0]
            assert (key.tokens[-1] == view.stop) == (view.stop is not None)
            assert normalise(key.text) != normalise(questions.questions[row].text)
            seen[key.view] = seen.get(key.view, 0) + 1
    assert min(seen.get(view.name, 0) for view in grammar.views) > 3, seen


def test_training_scores_are_those_of_the_search(model: LoadedSeq2Seq, questions: QuestionSet, mined: Path) -> None:
    grammar = Grammar.from_dict(model.info["grammar"])
    lists = read_lists(mined, questions, model.tokenizer, grammar, model=model.folder)
    assert len(lists) > 5
    batch = ListBatch(ListsConfig(length=6, positives=1, keys=KEYS))
    for each in lists:
        batch.add(each, np.random.default_rng(0))
    sources = model.tokenizer.encode([questions.questions[each.question].text for each in lists])
    made: dict[str, Any] = {
        "lists": batch.tensors(),
        "keys": KeyBatches(model.tokenizer, grammar).make(sources, batch.keys),
    }
    mined_BD, real_BD = made["lists"]["mined_BD"], made["lists"]["real_BD"]
    assert made["lists"]["mask_BDN"].sum(-1).max() < KEYS, "an identifier was left out"
    log_probs_BK = key_log_probs(model.model, made["keys"]).detach()
    is_query_BK = made["lists"]["bias_BK"] == BIAS
    capped_BK = is_query_BK & (log_probs_BK + BIAS > CAP)
    assert capped_BK.any()
    assert (is_query_BK & ~capped_BK).any()
    for each, own, found_K in zip(lists, batch.keys, log_probs_BK, strict=True):
        known = dict(zip(each.keys, each.log_probs_K.tolist(), strict=True))
        assert found_K[: len(own)].tolist() == pytest.approx([known[key] for key in own], rel=1e-4, abs=1e-4)
    config = RankConfig(loss=LossConfig(kind="ltrgr"), likelihood_weight=0.0, fit=FitConfig(steps=1))
    scores_BD = score_lists(model.model, made, config)
    assert scores_BD[real_BD].tolist() == pytest.approx(mined_BD[real_BD].tolist(), rel=1e-3)
