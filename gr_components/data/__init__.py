"""Readers and writers of every file format, splits, and the leakage check."""

from gr_components.data.collections import (
    read_corpus,
    read_ids,
    read_qrels,
    read_questions,
    write_corpus,
    write_ids,
    write_qrels,
    write_questions,
)
from gr_components.data.leakage import Leak, leaks, normalise
from gr_components.data.records import Passage, Question, searchable_text

__all__ = [
    "Leak",
    "Passage",
    "Question",
    "leaks",
    "normalise",
    "read_corpus",
    "read_ids",
    "read_qrels",
    "read_questions",
    "searchable_text",
    "write_corpus",
    "write_ids",
    "write_qrels",
    "write_questions",
]
