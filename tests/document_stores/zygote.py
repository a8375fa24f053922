"""
A process that has imported everything and forks workers on demand: a worker starts in milliseconds, not seconds.

`run` is what a worker does. Workers are told apart by their pid, which the test may kill.
"""

import ctypes
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import traceback
from pathlib import Path

import numpy as np
from haystack import Document
from haystack.document_stores.types import DuplicatePolicy

from gr_components.decoding.grammar import TokenizedDocument
from gr_components.document_stores import local_vectors
from gr_components.document_stores.local import LocalDocumentStore
from gr_components.errors import StoreError

WORDS = [f"w{n}" for n in range(40)]
VOCABULARY = {word: n + 1 for n, word in enumerate(WORDS)}  # 0 is the boundary
SUFFIX = {"fields": ["body"], "boundary": 0, "tokenizer_fingerprint": "words", "vocabulary_size": len(WORDS) + 1}
SHARD_ROWS = 8


class Zygote:
    """The test's side: start workers and wait for them."""

    def __init__(self):
        command = [sys.executable, __file__]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert self._process.stdout.readline() == "ready\n"

    def start(self, task, *arguments):
        self._process.stdin.write(json.dumps([task, *arguments]) + "\n")
        self._process.stdin.flush()
        return int(self._process.stdout.readline())

    def wait(self, pid):
        """Return the status of a worker that ended or was killed."""
        self._process.stdin.write(json.dumps(["wait", pid]) + "\n")
        self._process.stdin.flush()
        return int(self._process.stdout.readline())

    def close(self):
        self._process.stdin.close()
        self._process.wait(timeout=60)
        self._process.stdout.close()


def tokenize(numbers, titles, texts, queries):
    return [
        TokenizedDocument(number=number, entries={"body": [[VOCABULARY[word] for word in text.split()]]})
        for number, text in zip(numbers, texts, strict=True)
    ]


class Journal:
    """What a worker was about to do and what it has done, as far as the operating system was told."""

    def __init__(self, path):
        self._descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)

    def add(self, *entry):
        os.write(self._descriptor, (json.dumps(entry) + "\n").encode())


def churn(folder, journal_path, seed, with_suffix):
    """Change the store and use its indexes until killed."""
    local_vectors.SHARD_ROWS = SHARD_ROWS
    rng, journal = random.Random(seed), Journal(journal_path)
    store = LocalDocumentStore(folder)
    while True:
        kind = rng.choice(["write", "write", "overwrite", "delete", "meta", "lexical", "vector", "suffix", "close"])
        if kind in ("write", "overwrite"):
            number = rng.choice([1, 3, 30])
            documents = {d.id: d.to_dict(flatten=False) for d in (random_document(rng, kind) for _ in range(number))}
            change(store, journal, ["put", list(documents.values())])
        elif kind == "delete":
            change(store, journal, ["delete", [f"d{rng.randrange(200)}" for _ in range(rng.choice([1, 5, 60]))]])
        elif kind == "meta":
            change(store, journal, ["meta", rng.randrange(10), rng.randrange(10)])
        elif kind == "lexical":
            store.lexical_search([rng.choice(WORDS)], top_k=5)
        elif kind == "vector":
            store.write_vectors("dense", [0], np.zeros((1, 2)))  # there is no document 0, but now there is an index
            store.vector_search(np.ones((1, 2)), top_k=5)
        elif kind == "suffix" and with_suffix:
            store.build_suffix("generative", tokenize, **SUFFIX)
        elif kind == "close":
            store.close()


def random_document(rng, kind):
    identifier = f"n{rng.getrandbits(60)}" if kind == "write" and rng.random() < 0.5 else f"d{rng.randrange(200)}"
    content = " ".join(rng.choices(WORDS, k=rng.randrange(6)))
    embedding = [rng.random(), rng.random()] if rng.random() < 0.5 else None
    return Document(id=identifier, content=content, meta={"k": rng.randrange(10)}, embedding=embedding)


def change(store, journal, entry):
    journal.add("begin", entry)
    kind, *values = entry
    if kind == "put":
        store.write_documents([Document.from_dict(data) for data in values[0]], DuplicatePolicy.OVERWRITE)
    elif kind == "delete":
        store.delete_documents(values[0])
    else:
        store.update_by_filter({"field": "meta.k", "operator": "==", "value": values[0]}, {"k": values[1]})
    journal.add("done")


def steps(folder, inbox, outbox):
    """Do what the test writes into a pipe, one line after the other."""
    store = LocalDocumentStore(folder)
    with Path(inbox).open() as commands, Path(outbox).open("w") as answers:
        for line in commands:
            identifier = line.strip()
            store.write_documents([Document(id=identifier, content=f"common {identifier}", embedding=[1.0, 2.0])])
            lexical = store.lexical_search(["common"], top_k=1000)[0]
            vector = store.vector_search(np.ones((1, 2)), top_k=1000)[0]
            answers.write(json.dumps([store.count_documents(), len(lexical), len(vector)]) + "\n")
            answers.flush()
    store.close()


def read_mounted(mounted, names, answers):
    """Search stores on a read-only mount, which only this process sees; without the right to mount, answer nothing."""
    new_namespace = 0x00020000
    if sys.platform != "linux" or ctypes.CDLL(None).unshare(new_namespace):
        return
    for options in (["--make-rprivate", "/"], ["--bind", mounted, mounted], ["-o", "remount,ro,bind", mounted]):
        if subprocess.run(["mount", *options], check=False).returncode:
            return
    lines = []
    for name in names:
        store = LocalDocumentStore(f"{mounted}/{name}", read_only=True)
        for _ in range(2):
            lexical = store.lexical_search(["common"], top_k=99)[0]
            vector = store.vector_search(np.ones((1, 2)), top_k=99)[0]
            lags = [state.lag for state in store.indexes()]
            lines.append(f"{store.count_documents()} {len(lexical)} {len(vector)} {lags}")
            store.close()
    try:
        LocalDocumentStore(f"{mounted}/{names[0]}").write_documents([])
    except StoreError as error:
        lines.append(f"{type(error).__name__} {error}")
    Path(answers).write_text("\n".join(lines))


def hold(folder, outbox):
    """Hold the writer lock until killed."""
    with LocalDocumentStore(folder)._database.writing():
        Path(outbox).write_text("held")
        signal.pause()


def warm_up():
    """Have the suffix kernels compiled before forking: a worker may not live long enough for that."""
    with tempfile.TemporaryDirectory() as folder:
        store = LocalDocumentStore(folder)
        store.write_documents([Document(id=word, content=f"{word} {word}") for word in WORDS])
        store.build_suffix("generative", tokenize, **SUFFIX)
        store.close()


def main():
    tasks = {"churn": churn, "steps": steps, "hold": hold, "read_mounted": read_mounted}
    warm_up()
    print("ready", flush=True)
    for line in sys.stdin:
        task, *arguments = json.loads(line)
        if task == "wait":
            print(os.waitpid(arguments[0], 0)[1], flush=True)
            continue
        pid = os.fork()
        if pid == 0:
            try:
                os.dup2(2, 1)  # standard output belongs to the answers of `main`
                os.close(0)
                tasks[task](*arguments)
                os._exit(0)
            except BaseException:
                traceback.print_exc()
                os._exit(1)
        print(pid, flush=True)
    os._exit(0)  # taking a process with torch down in order takes seconds


if __name__ == "__main__":
    main()
