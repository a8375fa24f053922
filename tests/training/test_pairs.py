"""Identifiers drawn for questions and passages."""

from collections import Counter

import numpy as np
import pytest

from gr_components.data import Passage, Question
from gr_components.decoding.grammar import reserved_grammar
from gr_components.errors import ConfigError
from gr_components.tokenization import TextTokenizer
from gr_training.generative.identifier_batches import GrammarConfig, grammar_for
from gr_training.generative.pairs import PairSampler, PairsConfig
from gr_training.sources import QuestionSet

TEXT = (
    "Construction of the tower began in spring. Workers carried stone from quarries far away to the site. "
    "The architect Emmanuelle Vautrin designed seven enormous bells for the northern belfry. "
    "Visitors may climb the staircase on weekends during summer."
)
QUESTIONS = ["Who designed the enormous bells?", "Where did the stone come from?", "When may visitors climb?"]


@pytest.fixture(scope="module")
def tokenizer(minilm) -> TextTokenizer:
    return TextTokenizer.from_folder(minilm)


def make_set(title: str = "Tower", questions: list[str] = QUESTIONS, pseudo: tuple[str, ...] = ()) -> QuestionSet:
    passages = [Passage("a", "Other", "Nothing of interest stands here at all."), Passage("b", title, TEXT, pseudo)]
    asked = [Question(str(n), text) for n, text in enumerate(questions)]
    return QuestionSet("s", passages, asked, [[1]] * len(asked), {q.id: {"b": 1} for q in asked})


def sampler(tokenizer: TextTokenizer, each: QuestionSet, **changes: object) -> PairSampler:
    return PairSampler([each], tokenizer, reserved_grammar(tokenizer), PairsConfig(**changes))  # type: ignore[arg-type]


def test_a_question_gets_spans_its_title_and_other_questions(tokenizer):
    pair = sampler(tokenizer, make_set()).supervised(0, 0, np.random.default_rng(0))
    assert pair.source == tokenizer.encode([QUESTIONS[0]])[0]
    assert [target.view.name for target in pair.targets] == ["body"] * 4 + ["title"] + ["query"] * 2
    stop = tokenizer.special["sep"]
    text = tokenizer.encode([TEXT])[0]
    for target in pair.targets[:4]:
        assert len(target.tokens) <= 11
        assert any(text[i : i + len(target.tokens)] == target.tokens for i in range(len(text)))
        assert not tokenizer.token(target.tokens[0]).startswith("##"), "spans start with a word"
    assert pair.targets[4].tokens == [*tokenizer.encode(["Tower"])[0], stop]
    others = [[*ids, stop] for ids in tokenizer.encode(QUESTIONS[1:])]
    assert all(target.tokens in others for target in pair.targets[5:]), "never the question itself"


def test_a_question_is_no_identifier_for_itself(tokenizer):
    """Not as a pseudo-query of its passage, and not under another number."""
    pseudo = ("who designed the enormous bells", "Who cast the bells?")
    each = make_set(questions=[*QUESTIONS, "Who designed the ENORMOUS bells"], pseudo=pseudo)
    drawn = [sampler(tokenizer, each).supervised(0, 0, np.random.default_rng(seed)) for seed in range(40)]
    stop = tokenizer.special["sep"]
    queries = {tuple(target.tokens) for pair in drawn for target in pair.targets if target.view.name == "query"}
    assert queries == {(*ids, stop) for ids in tokenizer.encode([*QUESTIONS[1:], pseudo[1]])}


def test_a_grammar_without_the_query_view(tokenizer):
    grammar = grammar_for(GrammarConfig(), tokenizer, {}, query_view=False)
    assert [view.name for view in grammar.views] == ["body", "title"]
    assert "query" not in grammar.fields
    known = {"grammar": reserved_grammar(tokenizer).to_dict()}
    assert grammar_for(GrammarConfig(), tokenizer, known, query_view=False) == grammar
    assert grammar_for(GrammarConfig(), tokenizer, known, query_view=True) == reserved_grammar(tokenizer)
    drawn = PairSampler([make_set()], tokenizer, grammar, PairsConfig(query=0))
    assert len(drawn.supervised(0, 0, np.random.default_rng(0)).targets) == 5
    with pytest.raises(ConfigError, match=r"pairs\.query is 2"):
        PairSampler([make_set()], tokenizer, grammar, PairsConfig())


def test_a_passage_without_text_gives_its_title(tokenizer):
    each = make_set()
    each.passages[1] = Passage("b", "Tower", "")
    drawn = sampler(tokenizer, each)
    pair = drawn.supervised(0, 0, np.random.default_rng(0))
    assert {target.view.name for target in pair.targets} == {"title", "query"}
    for seed in range(20):
        other = drawn.unsupervised(np.random.default_rng(seed))
        assert other.source
        assert all(target.tokens for target in other.targets)


def test_spans_are_biased_to_the_words_of_the_question(tokenizer):
    drawn = sampler(tokenizer, make_set())

    def hits(temperature: float) -> float:
        own = sampler(tokenizer, make_set(), temperature=temperature)
        bells = tokenizer.id("bells")
        spans = [own.supervised(0, 0, np.random.default_rng(seed)).targets[0].tokens for seed in range(300)]
        return sum(bells in span for span in spans) / 300

    assert hits(0.03) > 0.9
    assert hits(1000.0) < 0.35
    assert drawn.config.temperature == 1.5


def test_what_a_passage_lacks_is_replaced_by_spans(tokenizer):
    pair = sampler(tokenizer, make_set(title="", questions=QUESTIONS[:1])).supervised(0, 0, np.random.default_rng(0))
    assert [target.view.name for target in pair.targets] == ["body"] * 7


def test_pseudo_queries_of_the_corpus_are_query_targets(tokenizer):
    own = sampler(tokenizer, make_set(questions=QUESTIONS[:1], pseudo=("who made the bells",)))
    pair = own.supervised(0, 0, np.random.default_rng(0))
    assert pair.targets[-1].tokens == [*tokenizer.encode(["who made the bells"])[0], tokenizer.special["sep"]]


def test_a_pseudo_query_that_is_cut_does_not_end(tokenizer):
    own = sampler(tokenizer, make_set(questions=QUESTIONS[:1], pseudo=("word " * 60,)))
    target = own.supervised(0, 0, np.random.default_rng(0)).targets[-1]
    assert len(target.tokens) == target.view.max_tokens
    assert target.tokens[-1] != tokenizer.special["sep"]


def test_the_same_generator_gives_the_same_pair(tokenizer):
    own = sampler(tokenizer, make_set())
    assert own.supervised(0, 1, np.random.default_rng(4)) == own.supervised(0, 1, np.random.default_rng(4))
    assert own.unsupervised(np.random.default_rng(4)) == own.unsupervised(np.random.default_rng(4))


def test_unsupervised_sources_are_noised_pieces(tokenizer):
    own = sampler(tokenizer, make_set(), delete=1.0, deleted=0.5, shuffle=0.0)
    corpus = {1: Counter(tokenizer.encode([TEXT])[0])}
    lengths = []
    for seed in range(50):
        pair = own.unsupervised(np.random.default_rng(seed))
        assert len(pair.targets) == 7
        if pair.targets[4].view.name == "title" and tokenizer.id("tower") in pair.targets[4].tokens:
            assert not Counter(pair.source) - corpus[1]
            lengths.append(len(pair.source))
    assert lengths
    assert np.mean(lengths) < 11


def test_views_that_the_grammar_lacks_are_refused(tokenizer):
    grammar = reserved_grammar(tokenizer)
    only_body = type(grammar)(layout="reserved", views=grammar.views[:1], boundary=grammar.boundary)
    with pytest.raises(ConfigError, match=r"pairs.title is 1, but the model's grammar has only the views \['body'\]"):
        PairSampler([make_set()], tokenizer, only_body, PairsConfig())
