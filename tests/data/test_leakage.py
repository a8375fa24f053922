from gr_components.data import leaks, normalise


def test_normalise_keeps_words_only():
    assert normalise("  What\u2019s\tthe ﬁrst—TEAM's name?! ") == "what s the first team s name"
    assert normalise("东京 Straße") == "东京 strasse"


def test_a_question_is_found_whatever_its_punctuation_and_surroundings():
    question = "What day was the game played on?"
    texts = ["Nothing here", "what day was the game  PLAYED on", "[CLS] ... what day was the game played on ? [SEP] x"]
    assert [(leak.question, leak.position) for leak in leaks([question], texts)] == [(question, 1), (question, 2)]


def test_half_a_question_or_words_that_go_on_are_no_leak():
    assert (
        leaks(["What day was the game played on?"], ["What day was the game?", "what day was the game played onward"])
        == []
    )


def test_short_questions_leak_only_as_a_whole_text():
    assert [leak.position for leak in leaks(["Who?"], ["who", "people who live"])] == [0]


def test_questions_with_a_common_start_are_told_apart():
    forbidden = ["who won the cup", "who won the cup in 1999"]
    assert [leak.question for leak in leaks(forbidden, ["Who won the cup in 1999?"])] == forbidden
    assert [leak.question for leak in leaks(forbidden, ["Who won the cup, then?"])] == forbidden[:1]


def test_nothing_in_nothing():
    assert leaks([], ["a b c"]) == leaks(["?"], ["", "?"]) == []
