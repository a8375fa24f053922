import pytest

from gr_components.data import Question, check_disjoint, select
from gr_components.errors import DataError


def test_select_follows_the_list_and_names_what_is_missing():
    questions = [Question(i, i) for i in "abc"]
    assert [q.id for q in select(questions, ["c", "a"])] == ["c", "a"]
    with pytest.raises(DataError, match="1 of 2 ids are not among the items, the first one is 'x'"):
        select(questions, ["a", "x"])


def test_overlapping_splits_are_named():
    check_disjoint({"train": ["a"], "test": ["b"]})
    with pytest.raises(DataError, match="The id 'a' is in the split 'train' and in 'test'"):
        check_disjoint({"train": ["a"], "test": ["b", "a"]})
