import importlib.util
import tempfile
from contextlib import contextmanager
from pathlib import Path

import pytest


def _load_zygote():
    spec = importlib.util.spec_from_file_location("store_zygote", Path(__file__).parent / "zygote.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def zygote_module():
    return _load_zygote()


@pytest.fixture(scope="session")
def zygote(zygote_module):
    """Starts processes that use a store, in milliseconds."""
    process = zygote_module.Zygote()
    yield process
    process.close()


@pytest.fixture
def memory_path():
    """A folder in memory where there is such a thing (Linux): thousands of transactions need no real disk."""
    with _memory_folder() as folder:
        yield folder


@pytest.fixture(scope="module")
def module_memory_path():
    """The same for all tests of a module."""
    with _memory_folder() as folder:
        yield folder


@contextmanager
def _memory_folder():
    shared = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=shared if shared.is_dir() else None) as folder:
        yield Path(folder)
