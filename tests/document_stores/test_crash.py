"""Processes that are killed while they write and index, full disks, locks, several processes on one store."""

import itertools
import json
import os
import random
import signal
import time
from dataclasses import replace

import numpy as np
import pytest
from haystack import Document

from gr_components.decoding.grammar import TokenizedDocument
from gr_components.document_stores import local_vectors
from gr_components.document_stores.local import LocalDocumentStore
from gr_components.errors import StoreError, StoreLockedError


def replay(state, entry):
    """Return the documents by id after a change."""
    kind, *values = entry
    state = dict(state)
    if kind == "put":
        for data in values[0]:
            document, before = Document.from_dict(data), state.get(data["id"])
            if document.embedding is None and before is not None and before.content == document.content:
                document = replace(document, embedding=before.embedding)  # an unchanged text keeps its vector
            state[document.id] = document
    elif kind == "delete":
        for identifier in values[0]:
            state.pop(identifier, None)
    else:
        for identifier, document in state.items():
            if document.meta["k"] == values[0]:
                state[identifier] = replace(document, meta={"k": values[1]})
    return state


def possible_states(state, journal):
    """Return what the store may hold: everything that was done, and perhaps also what was begun."""
    begun = None
    for line in journal.read_text().splitlines() if journal.exists() else []:
        kind, *entry = json.loads(line)
        if kind == "done":
            state, begun = replay(state, begun), None
        else:
            begun = entry[0]
    return [state] if begun is None else [state, replay(state, begun)]


def check_indexes(store, state, zygote_module, rng):
    ids = {number: document.id for number, document in store.pending("no such index", batch_size=5000)}
    words = rng.sample(zygote_module.WORDS, 5)
    for word, hits in zip(words, store.lexical_search(words, top_k=10_000), strict=True):
        assert {ids[number] for number, _ in hits} == {i for i, d in state.items() if word in d.content.split()}, word

    embedded = {
        identifier: np.float32(document.embedding) for identifier, document in state.items() if document.embedding
    }
    query_E = np.array([rng.random(), rng.random()], dtype=np.float32)
    if embedded:
        scores = dict(store.vector_search(query_E[None], top_k=10_000, similarity="dot")[0])
        found = {ids.get(number, number): score for number, score in scores.items() if number in ids}
        textless = len(scores) - len(found)
        assert textless == sum(not state[identifier].content for identifier in embedded)
        for identifier, score in found.items():
            assert score == pytest.approx(float(embedded[identifier] @ query_E), rel=1e-5)

    store.build_suffix("generative", zygote_module.tokenize, **zygote_module.SUFFIX)
    snapshot = store.suffix_index("generative")
    assert snapshot.lag == 0
    for first, second in itertools.pairwise(words):
        tokens = np.array([[zygote_module.VOCABULARY[first], zygote_module.VOCABULARY[second]]])
        occurrences = snapshot.index.locate(snapshot.index.extend("body", tokens))
        found = {ids[int(snapshot.index.numbers_D[d])] for d in occurrences.documents_N}
        assert found == {i for i, d in state.items() if f" {first} {second} " in f" {d.content} "}
    assert all(state_.lag == 0 for state_ in store.indexes() if state_.kind != "vector")


def kill_loop(zygote, zygote_module, folder, kills):
    rng, state, changes = random.Random(kills), {}, 0
    store_folder, journal = folder / "store", folder / "journal"
    for kill in range(kills):
        pid = zygote.start("churn", str(store_folder), str(journal), kill, True)
        time.sleep(10 ** rng.uniform(-2.3, -0.2))
        os.kill(pid, signal.SIGKILL)
        assert zygote.wait(pid) == signal.SIGKILL, "the worker failed by itself"
        possible = possible_states(state, journal)
        store = LocalDocumentStore(str(store_folder))
        found = {document.id: document for document in store.filter_documents()}
        assert found in possible, f"after kill {kill}"
        changes += found != state
        state = found
        journal.unlink(missing_ok=True)
        check_indexes(store, state, zygote_module, rng)
        store.close()
    assert changes > kills / 2, "the workers hardly did anything"
    leftovers = [p for p in store_folder.rglob("*") if p.is_dir() and ".partial-" in p.name]
    assert not leftovers, "unfinished index folders are collected"


def test_killed_at_random_moments(zygote, zygote_module, memory_path, monkeypatch):
    monkeypatch.setattr(local_vectors, "SHARD_ROWS", zygote_module.SHARD_ROWS)
    kill_loop(zygote, zygote_module, memory_path, 10)


@pytest.mark.slow
def test_killed_fifty_times(zygote, zygote_module, memory_path, monkeypatch):
    monkeypatch.setattr(local_vectors, "SHARD_ROWS", zygote_module.SHARD_ROWS)
    kill_loop(zygote, zygote_module, memory_path, 50)


def test_a_killed_writer_leaves_no_lock(zygote, memory_path):
    folder, held = memory_path / "store", memory_path / "held"
    store = LocalDocumentStore(str(folder), lock_timeout_s=0.1)
    store.write_documents([Document(id="1")])
    pid = zygote.start("hold", str(folder), str(held))
    wait_for(held.exists)
    with pytest.raises(StoreLockedError, match=f"held by process {pid} for more than 0.1 s"):
        store.write_documents([Document(id="2")])
    assert store.count_documents() == 1, "readers are not locked out"
    os.kill(pid, signal.SIGKILL)
    zygote.wait(pid)
    assert store.write_documents([Document(id="2")]) == 1
    store.close()


def test_readers_see_what_another_process_commits(zygote, memory_path):
    folder, inbox, outbox = (memory_path / name for name in ("store", "inbox", "outbox"))
    os.mkfifo(inbox)
    os.mkfifo(outbox)
    store = LocalDocumentStore(str(folder))
    store.write_documents([Document(id="0", content="common 0", embedding=[1.0, 1.0])])
    pid = zygote.start("steps", str(folder), str(inbox), str(outbox))
    with inbox.open("w") as commands, outbox.open() as answers:
        for n in range(1, 9):
            commands.write(f"c{n}\n")
            commands.flush()
            expected = [2 * n] * 3
            assert json.loads(answers.readline()) == expected, "the other process sees all that this one wrote"
            readers = [store, LocalDocumentStore(str(folder), read_only=True)]
            for reader in readers:
                assert reader.count_documents() == expected[0]
                assert len(reader.lexical_search(["common"], top_k=100)[0]) == expected[0]
                assert len(reader.vector_search(np.ones((1, 2)), top_k=100)[0]) == expected[0]
            readers[1].close()
            store.write_documents([Document(id=f"p{n}", content=f"common {n}", embedding=[1.0, 0.0])])
    assert zygote.wait(pid) == 0
    store.close()


def test_a_full_disk_changes_nothing(zygote_module, memory_path, file_size_limit):
    store = LocalDocumentStore(str(memory_path / "store"))
    store.write_documents([Document(id="1", content="common", embedding=[1.0, 2.0])])
    store.lexical_search(["common"], top_k=1)
    big = [Document(id=f"b{n}", content="common " * 2000, embedding=[1.0, 2.0]) for n in range(200)]
    with file_size_limit(200_000):
        with pytest.raises(StoreError, match=r"Nothing of this operation was kept\. Free some space"):
            store.write_documents(big)
        assert store.count_documents() == 1
        assert len(store.lexical_search(["common"], top_k=9)[0]) == 1
        with pytest.raises(StoreError, match="Free some space"):
            store.write_vectors("other", [1], np.ones((1, 100_000)))
    assert store.write_documents(big) == 200
    with file_size_limit(3_000):
        with pytest.raises(StoreError, match="Free some space"):
            store.lexical_search(["common"], top_k=9)
        with pytest.raises(StoreError, match="Free some space"):
            store.build_suffix("generative", long_tokenize, **zygote_module.SUFFIX)
    assert len(store.lexical_search(["common"], top_k=999)[0]) == 201
    assert store.build_suffix("generative", long_tokenize, **zygote_module.SUFFIX) == 201
    assert not [path for path in memory_path.rglob("*") if ".partial-" in path.name]
    store.close()


def long_tokenize(numbers, titles, texts, queries):
    return [TokenizedDocument(number=number, entries={"body": [[1, 2, 3] * 2000]}) for number in numbers]


def wait_for(condition):
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)
