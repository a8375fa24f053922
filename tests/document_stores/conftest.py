import tempfile
from contextlib import contextmanager
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def zygote_module(load_script):
    return load_script(Path(__file__).with_name("zygote.py"))


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
