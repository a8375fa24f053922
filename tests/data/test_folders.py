import pytest

from gr_components.data import Passage, read_text_folder
from gr_components.errors import DataError


def test_text_files_become_passages_sorted_by_path(tmp_path):
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "my-long_name.md").write_text("B\n\nC\n")
    (tmp_path / "a.txt").write_text("Ä")
    (tmp_path / "image.png").write_bytes(b"\xff")
    (tmp_path / ".hidden.txt").write_text("no")
    assert list(read_text_folder(tmp_path)) == [
        Passage("a.txt", "a", "Ä", (), {"file": "a.txt"}),
        Passage("sub/my-long_name.md", "my long name", "B\n\nC", (), {"file": "sub/my-long_name.md"}),
    ]


def test_long_files_are_cut_without_losing_a_word(tmp_path):
    text = "one two three\nfour five\n" + " ".join(f"w{i}" for i in range(11)) + "\nlast"
    (tmp_path / "a.txt").write_text(text)
    passages = list(read_text_folder(tmp_path, max_words=5))
    assert [passage.id for passage in passages] == [f"a.txt#{i}" for i in range(1, len(passages) + 1)]
    assert " ".join(passage.text for passage in passages).split() == text.split()
    assert all(len(passage.text.split()) <= 5 for passage in passages)
    assert passages[0].text == "one two three\nfour five"
    assert [passage.meta["part"] for passage in passages] == list(range(1, len(passages) + 1))


def test_an_empty_file_is_an_empty_passage(tmp_path):
    (tmp_path / "a.txt").write_text("")
    assert (
        [p.text for p in read_text_folder(tmp_path)]
        == [p.text for p in read_text_folder(tmp_path, max_words=3)]
        == [""]
    )


def test_bad_folders_are_named(tmp_path):
    with pytest.raises(DataError, match="There is no folder"):
        list(read_text_folder(tmp_path / "none"))
    with pytest.raises(DataError, match=r"holds no file ending in \.txt or \.md"):
        list(read_text_folder(tmp_path))
    (tmp_path / "a.txt").write_bytes(b"ok\n\xff")
    with pytest.raises(DataError, match=r"a\.txt, line 2: not UTF-8"):
        list(read_text_folder(tmp_path))
    with pytest.raises(DataError, match="max_words must be at least 1, got 0"):
        list(read_text_folder(tmp_path, max_words=0))
