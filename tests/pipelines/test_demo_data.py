import pytest

from gr_components.data import check_disjoint, leaks
from gr_components.errors import ConfigError
from gr_pipelines.demo import data
from gr_pipelines.demo.make_splits import split

HELD_OUT = ("validation", "test", "unseen")


def held_out_questions():
    return [question.text for name in HELD_OUT for question in data.questions(name)]


def paragraphs(name):
    return {document for judged in data.qrels(name).values() for document in judged}


def test_sizes_are_those_of_the_design():
    sizes = {name: len(data.questions(name)) for name in data.SPLITS}
    assert sizes == {"train": 3320, "validation": 400, "test": 1200, "unseen": 776}
    assert len(data.corpus()) == 1048
    assert sum(sizes.values()) == 5696


def test_splits_share_no_question_and_unseen_paragraphs_have_none_elsewhere():
    check_disjoint({name: [question.id for question in data.questions(name)] for name in data.SPLITS})
    assert len(paragraphs("unseen")) == 150
    for name in ("train", "validation", "test"):
        assert not paragraphs("unseen") & paragraphs(name)


def test_no_held_out_question_is_in_training_questions_pseudo_queries_or_texts():
    corpus = data.corpus(with_queries=True)
    training = [question.text for question in data.questions("train")]
    index_texts = [" ".join((passage.title, passage.text, *passage.queries)) for passage in corpus]
    pseudo_queries = [query for passage in corpus for query in passage.queries]
    assert len(pseudo_queries) == len(training)
    assert leaks(held_out_questions(), [*training, *pseudo_queries, *index_texts]) == []


def test_the_leakage_check_sees_a_planted_question():
    planted = [data.questions("test")[7].text.upper() + " Indeed."]
    assert len(leaks(held_out_questions(), planted)) == 1


def test_the_committed_splits_are_what_the_script_makes():
    everything = {question.id: question for name in data.SPLITS for question in data.questions(name)}
    qrels = {question: judged for name in data.SPLITS for question, judged in data.qrels(name).items()}
    made = split(list(everything.values()), qrels)
    assert made == {name: [question.id for question in data.questions(name)] for name in data.SPLITS}


def test_every_question_has_an_answer_in_its_one_paragraph():
    texts = {passage.id: passage.text for passage in data.corpus()}
    for name in data.SPLITS:
        judged = data.qrels(name)
        for question in data.questions(name):
            ((document, grade),) = judged[question.id].items()
            assert grade == 1
            assert any(answer in texts[document] for answer in question.answers)


def test_a_sample_is_the_same_every_time():
    first = data.sample("test")
    assert [question.id for question in first] == [question.id for question in data.sample("test")]
    assert len({question.id for question in first}) == 300
    assert first != data.sample("test", seed=14)
    assert data.sample("validation", n=10_000) == data.questions("validation")


def test_an_unknown_split_is_named():
    with pytest.raises(ConfigError, match="no split 'dev'; its splits are train, validation, test, unseen"):
        data.questions("dev")


def test_the_notice_names_source_licence_and_changes():
    notice = (data.FOLDER / "NOTICE").read_text(encoding="utf-8")
    for needed in ("CC BY-SA 4.0", "creativecommons.org/licenses/by-sa/4.0", "SQuAD", "What was changed", "e0c66cf"):
        assert needed in notice
