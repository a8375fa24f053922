"""
Every error that this project raises on purpose.

GRError
├── ConfigError            (ValueError)          a setting is unknown, of the wrong type or out of range
├── DataError              (ValueError)          an input file or row is malformed
├── MissingExtraError      (ImportError)         an optional package is not installed
├── ModelError             (RuntimeError)        a model cannot be used
│   ├── ModelNotFoundError (FileNotFoundError)   a weight, tokenizer or description file is missing
│   ├── TokenizerMismatchError (ValueError)      two artefacts were made with different tokenizers
│   ├── DeviceError                              the requested device is absent
│   └── NumericsError      (ArithmeticError)     NaN or infinity where numbers are needed
├── SearchIndexError       (RuntimeError)        an index cannot be used
│   ├── IndexFormatError   (ValueError)          wrong version, truncated or damaged files
│   ├── IndexMissingError  (LookupError)         no index of that name
│   └── DimensionError     (ValueError)          vectors of the wrong width
├── StoreError             (RuntimeError)        the document store cannot do what was asked
│   ├── StoreLockedError                         another process writes to it
│   └── StoreVersionError  (ValueError)          it was written by another version
├── ExportError            (RuntimeError)        a model could not be exported
│   └── ParityError        (ArithmeticError)     exported and source model disagree
└── ProvenanceError        (ValueError)          an input changed since it was recorded

A message says what happened, where, with which value, and what to do about it.
"""

import errno
import re

DISK_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
"""Error numbers of the operating system that mean: no more can be written here."""
_FROM_RUST = re.compile(r"(?:os error |code: )(\d+)\b")


def full_disk(error: BaseException) -> int | None:
    """
    Return the number of an error that means that the disk is full, also where a library in Rust hides it in its text.

    :param error: What was raised.
    """
    if isinstance(error, OSError):
        return error.errno if error.errno in DISK_FULL else None
    found = _FROM_RUST.search(str(error))
    return int(found[1]) if found and int(found[1]) in DISK_FULL else None


class GRError(Exception):
    """Base of all errors of this project."""


class ConfigError(GRError, ValueError):
    """A setting is unknown, of the wrong type or out of range."""


class DataError(GRError, ValueError):
    """An input file or row is malformed."""


class MissingExtraError(GRError, ImportError):
    """An optional package is not installed; the message names the command that installs it."""


class ModelError(GRError, RuntimeError):
    """A model cannot be used."""


class ModelNotFoundError(ModelError, FileNotFoundError):
    """A weight, tokenizer or description file of a model is missing."""


class TokenizerMismatchError(ModelError, ValueError):
    """Two artefacts that must share a tokenizer do not."""


class DeviceError(ModelError):
    """The requested device is absent."""


class NumericsError(ModelError, ArithmeticError):
    """A model or a vector holds NaN or infinity."""


class SearchIndexError(GRError, RuntimeError):
    """An index cannot be used."""


class IndexFormatError(SearchIndexError, ValueError):
    """Index files are of another version, truncated or damaged."""


class IndexMissingError(SearchIndexError, LookupError):
    """There is no index of that name."""


class DimensionError(SearchIndexError, ValueError):
    """Vectors do not have the width of the index."""


class StoreError(GRError, RuntimeError):
    """The document store cannot do what was asked."""


class StoreLockedError(StoreError):
    """Another process holds the store's writer lock."""


class StoreVersionError(StoreError, ValueError):
    """The store was written by an incompatible version."""


class ExportError(GRError, RuntimeError):
    """A model could not be exported."""


class ParityError(ExportError, ArithmeticError):
    """An exported model and its source give different numbers."""


class ProvenanceError(GRError, ValueError):
    """An input file is not the one that was recorded."""
