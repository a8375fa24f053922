"""
Small stores as released versions wrote them, one archive a format: `released/format-N.tar.gz`.

A new format gets a new archive, made once by the version that introduces it, with
`python tests/document_stores/released.py`; archives are never made again.
"""

import gzip
import io
import tarfile
import tempfile
from pathlib import Path

import numpy as np
from haystack import Document

from gr_components.decoding.grammar import TokenizedDocument
from gr_components.document_stores import local_vectors
from gr_components.document_stores.local import LocalDocumentStore
from gr_components.document_stores.local_schema import FORMAT

FOLDER = Path(__file__).parent / "released"
WORDS = ["ada", "wrote", "the", "first", "program", "goethe", "faust", "java", "volcano", "about"]
SUFFIX = {"fields": ["body"], "boundary": 0, "tokenizer_fingerprint": "words", "vocabulary_size": len(WORDS) + 1}
DOCUMENTS = [
    Document(
        id="ada", content="ada wrote the first program", meta={"title": "Ada", "year": 1843, "queries": ["first"]}
    ),
    Document(id="goethe", content="goethe wrote faust", meta={"year": 1808}, embedding=[0.0, 1.0, 0.5]),
    Document(id="java", content="the java volcano", meta={"tags": ["a", "b"]}, embedding=[1.0, 0.0, 0.1]),
    Document(id="empty", content="", score=0.25),
]


def ids_of(text: str) -> list[int]:
    """Turn words into the tokens of the generative index."""
    return [WORDS.index(word) + 1 for word in text.split()]


def tokenize(numbers, titles, texts, queries):
    """Turn documents into what the generative index stores."""
    return [
        TokenizedDocument(number=number, entries={"body": [ids_of(text)]})
        for number, text in zip(numbers, texts, strict=True)
    ]


def make(folder: Path) -> None:
    """Write a store with every kind of index, in which something was changed and deleted."""
    local_vectors.SHARD_ROWS = 2
    store = LocalDocumentStore(str(folder))
    store.write_documents([*DOCUMENTS, Document(id="gone", content="about volcano", embedding=[1.0, 1.0, 1.0])])
    store.write_vectors("named", [1], np.ones((1, 2)), model_fingerprint="some-model")
    store.build_suffix("generative", tokenize, **SUFFIX, config={"grammar": {"layout": "words"}})
    store.refresh()
    store.delete_documents(["gone"])
    store.refresh()
    store.close()


def main() -> None:
    archive = FOLDER / f"format-{FORMAT}.tar.gz"
    if archive.exists():
        msg = f"'{archive}' exists: the store of a released format is never made again."
        raise SystemExit(msg)
    FOLDER.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch:
        make(Path(scratch) / "store")
        packed = io.BytesIO()
        with tarfile.open(fileobj=packed, mode="w") as files:
            for path in sorted((Path(scratch) / "store").rglob("*")):
                if path.is_file() and not path.name.endswith("lock"):
                    files.add(path, path.relative_to(scratch), filter=_anonymous)
        archive.write_bytes(gzip.compress(packed.getvalue(), 9, mtime=0))


def _anonymous(member: tarfile.TarInfo) -> tarfile.TarInfo:
    member.uid = member.gid = member.mtime = 0
    member.uname = member.gname = ""
    return member


if __name__ == "__main__":
    main()
