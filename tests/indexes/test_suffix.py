"""Segments on disk: round trip, damage, versions, and installations that cannot be written."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

import gr_components
from gr_components.errors import DataError, IndexFormatError, SearchIndexError, TokenizerMismatchError
from gr_components.indexes.manifest import Manifest, read_manifest
from gr_components.indexes.suffix import FORMAT, VERSION, SuffixSegment
from gr_components.indexes.suffix_index import SuffixIndex

DOCUMENTS = [
    SimpleNamespace(number=11, entries={"body": [[5, 6, 7, 5, 6]], "title": [[4, 5]]}),
    SimpleNamespace(number=3, entries={"body": [[]], "title": []}),
    SimpleNamespace(number=8, entries={"body": [[6, 5, 6, 9]], "ignored": [[1]]}),
]


def build(path, documents=DOCUMENTS, **other):
    settings = {"fields": ("body", "title"), "boundary": 1, "tokenizer_fingerprint": "abc" * 20, "vocabulary_size": 10}
    return SuffixSegment.build(path, documents, **{**settings, **other})


def count(segment, *tokens):
    index = SuffixIndex([segment])
    return int(index.count(index.extend("body", np.array([tokens])))[0])


def test_round_trip(tmp_path):
    built = build(tmp_path / "s", hot_threshold=1, info={"layout": "reserved"})
    opened = SuffixSegment.open(tmp_path / "s", verify="full", tokenizer_fingerprint="abc" * 20)
    opened.verify()
    for segment in (built, opened):
        assert segment.numbers_D.tolist() == [11, 3, 8]
        assert (segment.boundary, segment.vocabulary_size, segment.num_documents, segment.num_tokens) == (1, 10, 3, 16)
        assert segment.manifest.info["layout"] == "reserved"
        assert (count(segment, 5, 6), count(segment, 6), count(segment, 6, 5, 6, 9), count(segment, 9, 9)) == (
            3,
            4,
            1,
            0,
        )
    assert len(opened.fields["body"].arrays.edges_H1) > 2, "the hot table should be used here"


def test_arrays_are_mapped_and_cannot_be_changed(tmp_path):
    text_N = build(tmp_path / "s").fields["body"].arrays.text_N
    assert isinstance(text_N.base, np.memmap)
    with pytest.raises(ValueError, match="read-only"):
        text_N[0] = 3


def test_an_existing_folder_is_not_overwritten(tmp_path):
    build(tmp_path / "s")
    with pytest.raises(SearchIndexError, match="never overwritten"):
        build(tmp_path / "s")
    assert count(SuffixSegment.open(tmp_path / "s"), 5, 6) == 3


def test_a_failed_build_leaves_nothing(tmp_path):
    def documents():
        yield DOCUMENTS[0]
        raise OSError("the reader died")

    with pytest.raises(OSError, match="the reader died"):
        build(tmp_path / "s", documents())
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "name", ["body.suffixes.npy", "body.text.npy", "numbers.npy", "title.hot_edges.npy", "manifest.json"]
)
@pytest.mark.parametrize("damage", ["truncated", "missing"])
def test_incomplete_files_are_noticed_when_opening(tmp_path, name, damage):
    build(tmp_path / "s")
    file = tmp_path / "s" / name
    if damage == "missing":
        file.unlink()
    else:
        os.truncate(file, file.stat().st_size - 3)
    with pytest.raises(IndexFormatError, match="Build the index again"):
        SuffixSegment.open(tmp_path / "s")


def test_changed_bytes_are_noticed_by_the_full_check(tmp_path):
    segment = build(tmp_path / "s")
    file = tmp_path / "s" / "body.suffixes.npy"
    file.write_bytes(file.read_bytes()[:-1] + b"\x7f")
    SuffixSegment.open(tmp_path / "s")
    for check in (segment.verify, lambda: SuffixSegment.open(tmp_path / "s", verify="full")):
        with pytest.raises(IndexFormatError, match=r"body\.suffixes\.npy.*checksum"):
            check()


def test_another_version_is_refused(tmp_path):
    build(tmp_path / "s")
    manifest = read_manifest(tmp_path / "s", format=FORMAT, version=VERSION)
    Manifest(FORMAT, VERSION + 1, manifest.files, manifest.info).write(tmp_path / "s")
    with pytest.raises(
        IndexFormatError, match=f"version {VERSION + 1}, this program reads 'gr.suffix' version {VERSION}"
    ):
        SuffixSegment.open(tmp_path / "s")


def test_an_edited_manifest_is_refused(tmp_path):
    build(tmp_path / "s")
    file = tmp_path / "s" / "manifest.json"
    edited = json.loads(file.read_text())
    edited["info"]["boundary"] = 2
    file.write_text(json.dumps(edited))
    with pytest.raises(IndexFormatError, match="digest"):
        SuffixSegment.open(tmp_path / "s")


def test_another_tokenizer_is_refused(tmp_path):
    build(tmp_path / "s")
    with pytest.raises(TokenizerMismatchError, match="built with the tokenizer abcabcabcabc, the model uses ddd"):
        SuffixSegment.open(tmp_path / "s", tokenizer_fingerprint="d" * 60)


@pytest.mark.parametrize(
    ("documents", "message"),
    [
        ([DOCUMENTS[0], DOCUMENTS[0]], "number 11 was given twice"),
        ([SimpleNamespace(number=1, entries={"body": [[10]]})], "holds the token 10; the vocabulary has 10"),
        ([SimpleNamespace(number=1, entries={"body": [[-1]]})], "no 32-bit token id"),
    ],
)
def test_bad_documents_are_refused(tmp_path, documents, message):
    with pytest.raises(DataError, match=message):
        build(tmp_path / "s", documents)


def test_damaged_numbers_are_never_followed_out_of_bounds(tmp_path):
    """Random bytes in every array, sizes kept: whatever the answers are, reading stays inside the arrays."""
    rng = np.random.default_rng(0)
    build(tmp_path / "s", hot_threshold=1)
    original = {file: file.read_bytes() for file in (tmp_path / "s").glob("*.npy")}
    for _ in range(60):
        for file, content in original.items():
            noise = bytearray(content)
            for place in rng.integers(128, len(content), 6) if len(content) > 128 else ():
                noise[place] = rng.integers(256)
            file.write_bytes(bytes(noise))
        index = SuffixIndex([SuffixSegment.open(tmp_path / "s")])
        allowed = index.document_set(index.numbers_D[:2])
        for documents in (index.live, allowed):
            states, blocked_V = index.start("body", (), 3), np.zeros(10, bool)
            for _ in range(4):
                step = index.step(
                    rng.random((3, 10)).astype(np.float32) - 1,
                    np.zeros(3, np.float32),
                    states,
                    3,
                    5,
                    blocked_V,
                    documents,
                )
                assert step.tokens_BM.max() < 10
                index.count(step.states, documents)
                found = index.locate(step.states, documents)
                assert found.documents_N.max(initial=0) < 3
                states = step.states.select(np.arange(3))


@pytest.mark.slow
def test_kernels_compile_where_no_cache_can_be_written(tmp_path):
    """Neither the package folder nor the user's cache can be written: slower, with a hint, but it works."""
    source = Path(gr_components.__file__).parent
    copy = tmp_path / "readonly" / "gr_components"
    shutil.copytree(source, copy, ignore=shutil.ignore_patterns("__pycache__"))
    code = (
        "import logging; logging.basicConfig(level='INFO')\n"
        "import numba.core.caching as caching\n"
        "caching.CacheImpl._locator_classes = []\n"  # what numba is left with when no folder can be written
        "import numpy as np; from gr_components.indexes.suffix_array import suffix_array\n"
        "print(suffix_array(np.array([2, 1, 2])).tolist())"
    )
    environment = {**os.environ, "PYTHONPATH": str(copy.parent), "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[1, 2, 0]"
    assert "set NUMBA_CACHE_DIR" in done.stderr
