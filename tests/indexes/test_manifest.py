import json
import shutil

import numpy as np
import pytest

from gr_components.errors import IndexFormatError, SearchIndexError
from gr_components.indexes.manifest import is_temporary, open_array, publish, read_manifest, save_array


@pytest.fixture
def folder(tmp_path):
    path = tmp_path / "deep" / "index"
    info = {"documents": 3}
    with publish(path, format="gr.test", version=2, info=info) as temporary:
        assert is_temporary(temporary)
        save_array(temporary, "numbers", np.arange(5, dtype=np.int64))
        save_array(temporary, "nothing", np.zeros((0, 3), dtype=np.float32))
        (temporary / "sub").mkdir()
        (temporary / "sub" / "text.txt").write_text("héllo")
        info["late"] = True
    return path


def read(path, **kwargs):
    return read_manifest(path, **{"format": "gr.test", "version": 2, **kwargs})


def test_round_trip(folder):
    manifest = read(folder, verify="full")
    assert manifest.info == {"documents": 3, "late": True}
    assert set(manifest.files) == {"numbers.npy", "nothing.npy", "sub/text.txt"}
    assert manifest.size == sum(
        p.stat().st_size for p in folder.rglob("*") if p.is_file() and p.name != "manifest.json"
    )
    numbers = open_array(folder, "numbers")
    assert isinstance(numbers, np.memmap)
    assert numbers.tolist() == list(range(5))
    assert open_array(folder, "nothing").shape == (0, 3)
    assert not is_temporary(folder)
    assert [p.name for p in folder.parent.iterdir()] == ["index"]


def test_the_digest_names_the_content(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "copy")
    assert read(folder).digest == read(tmp_path / "copy").digest
    with publish(tmp_path / "other", format="gr.test", version=2, info={}) as temporary:
        save_array(temporary, "numbers", np.arange(6, dtype=np.int64))
    assert read(tmp_path / "other").digest != read(folder).digest


def test_never_overwrites(folder):
    with pytest.raises(SearchIndexError, match="never overwritten"), publish(folder, format="x", version=1, info={}):
        pass
    assert read(folder)


def test_a_failed_build_leaves_nothing(tmp_path):
    path = tmp_path / "index"

    def build():
        with publish(path, format="gr.test", version=2, info={}) as temporary:
            (temporary / "half").write_text("x")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: (f / "manifest.json").unlink(), "did not finish"),
        (lambda f: (f / "manifest.json").write_text("{"), "cannot be read"),
        (lambda f: (f / "manifest.json").write_text("[]"), "cannot be read"),
        (lambda f: (f / "numbers.npy").unlink(), "missing"),
        (lambda f: (f / "numbers.npy").write_bytes(b"123"), "3 bytes"),
    ],
)
def test_damage_that_the_header_check_finds(folder, damage, message):
    damage(folder)
    with pytest.raises(IndexFormatError, match=message):
        read(folder)


def test_an_edited_manifest(folder):
    plain = json.loads((folder / "manifest.json").read_text())
    plain["info"]["documents"] = 4
    (folder / "manifest.json").write_text(json.dumps(plain))
    with pytest.raises(IndexFormatError, match="digest"):
        read(folder)


def test_a_flipped_byte_needs_the_full_check(folder):
    content = bytearray((folder / "numbers.npy").read_bytes())
    content[-1] ^= 1
    (folder / "numbers.npy").write_bytes(content)
    assert read(folder)
    with pytest.raises(IndexFormatError, match="checksum"):
        read(folder, verify="full")


@pytest.mark.parametrize("expected", [{"version": 3}, {"format": "gr.other"}])
def test_another_format(folder, expected):
    with pytest.raises(IndexFormatError, match=r"holds 'gr\.test' version 2, this program reads"):
        read(folder, **expected)


def test_arrays_are_never_unpickled(folder):
    np.save(folder / "evil.npy", np.array([{}], dtype=object), allow_pickle=True)
    with pytest.raises(IndexFormatError, match=r"evil\.npy"):
        open_array(folder, "evil")
    with pytest.raises(IndexFormatError, match=r"absent\.npy"):
        open_array(folder, "absent")
    (folder / "cut.npy").write_bytes((folder / "numbers.npy").read_bytes()[:-8])
    with pytest.raises(IndexFormatError, match=r"cut\.npy"):
        open_array(folder, "cut")
