import gzip

import pytest

from gr_components.data.files import read_lines, read_objects, write_objects, writing
from gr_components.errors import DataError

LINES = [{"id": "ä", "text": 'Tab\tquote" newline\n 東京'}, {"id": "b", "text": ""}]


@pytest.mark.parametrize("name", ["plain.jsonl", "packed.jsonl.gz", "packed.jsonl.xz"])
def test_round_trip_with_line_numbers(tmp_path, name):
    assert write_objects(tmp_path / name, LINES) == 2
    assert list(read_objects(tmp_path / name)) == [(1, LINES[0]), (2, LINES[1])]


def test_same_content_gives_same_bytes_whatever_the_name_and_time(tmp_path, monkeypatch):
    write_objects(tmp_path / "one.gz", LINES)
    monkeypatch.setattr("time.time", lambda: 1e9)
    write_objects(tmp_path / "other.gz", LINES)
    assert (tmp_path / "one.gz").read_bytes() == (tmp_path / "other.gz").read_bytes()


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path):
    write_objects(tmp_path / "f.jsonl", LINES)

    def break_off():
        yield {"id": "c"}
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_objects(tmp_path / "f.jsonl", break_off())
    assert [data for _, data in read_objects(tmp_path / "f.jsonl")] == LINES
    assert [path.name for path in tmp_path.iterdir()] == ["f.jsonl"]


def test_byte_order_mark_and_windows_line_ends_are_no_content(tmp_path):
    (tmp_path / "f.jsonl").write_bytes(b'\xef\xbb\xbf{"id": 1}\r\n\r\n{"id": 2}\r\n')
    assert list(read_objects(tmp_path / "f.jsonl")) == [(1, {"id": 1}), (3, {"id": 2})]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"id": "a"}\n{"id": \n', r"f\.jsonl, line 2: not valid JSON \(.*column 8\)"),
        (b'["a"]\n', r"f\.jsonl, line 1: expected a JSON object, got list: .*\[\"a\"\]"),
        (b'{"id": "a"}\n{"id": "\xff\xfe"}\n', r"f\.jsonl, line 2: not UTF-8 \(byte b'\\xff' at position 8\)"),
    ],
)
def test_bad_lines_are_named(tmp_path, content, message):
    (tmp_path / "f.jsonl").write_bytes(content)
    with pytest.raises(DataError, match=message):
        list(read_objects(tmp_path / "f.jsonl"))


def test_a_cut_off_archive_is_named_with_the_last_good_line(tmp_path):
    lines = "\n".join(str(i * i) for i in range(20_000))
    (tmp_path / "f.gz").write_bytes(gzip.compress(lines.encode())[:-2000])
    with pytest.raises(DataError, match=r"f\.gz' cannot be read beyond line [1-9]\d+"):
        list(read_lines(tmp_path / "f.gz"))
    (tmp_path / "plain.gz").write_text("not gzip")
    with pytest.raises(DataError, match="beyond line 0"):
        list(read_lines(tmp_path / "plain.gz"))


def test_a_missing_file_is_a_data_error(tmp_path):
    with pytest.raises(DataError, match="There is no file"):
        list(read_lines(tmp_path / "none.jsonl"))
    with pytest.raises(DataError, match="There is no file"):
        list(read_lines(tmp_path))


def test_files_are_readable_by_others_as_the_umask_says(tmp_path):
    (tmp_path / "by_open").write_text("x")
    with writing(tmp_path / "by_writing") as file:
        file.write("x")
    assert (tmp_path / "by_open").stat().st_mode == (tmp_path / "by_writing").stat().st_mode
