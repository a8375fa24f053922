"""Windows of passages near the words of a question."""

import numpy as np

from gr_components.data import Passage
from gr_training.windows import Windows

WORDS = [f"filler{n}" for n in range(40)]
TEXT = " ".join([*WORDS[:20], "The", "Eiffel", "Tower,", "opened", *WORDS[20:]])
CORPUS = [Passage("a", "", TEXT), Passage("b", "", "The short one opened."), Passage("c", "", "the the the")]


def cut(question: str, seed: int = 0, passage: int = 0, num_words: int = 8) -> list[str]:
    return Windows(CORPUS, num_words).cut(passage, question, np.random.default_rng(seed)).split()


def test_the_window_holds_the_shared_words_and_they_stand_anywhere_in_it():
    places = set()
    for seed in range(60):
        window = cut("When was the Eiffel tower built?", seed)
        assert len(window) == 8
        assert {"Eiffel", "Tower,"} <= set(window)
        assert " ".join(window) in TEXT
        places.add(window.index("Eiffel"))
    assert len(places) > 4


def test_rare_words_count_more_than_common_ones():
    far = Windows([Passage("a", "", "the the the " + " ".join(WORDS) + " unicorn"), *CORPUS], 5)
    assert "unicorn" in far.cut(0, "the unicorn", np.random.default_rng(0))


def test_short_passages_are_returned_whole_and_without_shared_words_any_window_may_come():
    assert cut("opened", passage=1) == ["The", "short", "one", "opened."]
    assert len({tuple(cut("nothing", seed)) for seed in range(30)}) > 10
