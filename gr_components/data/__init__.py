"""Readers and writers of every file format, splits, and the leakage check."""

from gr_components.data.candidates import Candidate, Key, check_inputs, read_candidates, write_candidates
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
from gr_components.data.folders import read_text_folder
from gr_components.data.foreign import (
    DPRExample,
    read_dpr,
    read_dpr_passages,
    read_kilt,
    read_msmarco_collection,
    read_msmarco_queries,
)
from gr_components.data.imports import Imported, import_beir, import_dpr, import_msmarco
from gr_components.data.leakage import Leak, leaks, normalise
from gr_components.data.records import Passage, Question, searchable_text
from gr_components.data.runs import Run, ranked, read_run, write_run
from gr_components.data.splits import check_disjoint, select

__all__ = [
    "Candidate",
    "DPRExample",
    "Imported",
    "Key",
    "Leak",
    "Passage",
    "Question",
    "Run",
    "check_disjoint",
    "check_inputs",
    "import_beir",
    "import_dpr",
    "import_msmarco",
    "leaks",
    "normalise",
    "ranked",
    "read_candidates",
    "read_corpus",
    "read_dpr",
    "read_dpr_passages",
    "read_ids",
    "read_kilt",
    "read_msmarco_collection",
    "read_msmarco_queries",
    "read_qrels",
    "read_questions",
    "read_run",
    "read_text_folder",
    "searchable_text",
    "select",
    "write_candidates",
    "write_corpus",
    "write_ids",
    "write_qrels",
    "write_questions",
    "write_run",
]
