"""Keep transformers from drawing progress bars of its own while a model loads."""

from collections.abc import Iterator
from contextlib import contextmanager

from gr_components.extras import need


@contextmanager
def without_progress_bars() -> Iterator[None]:
    """Switch transformers' progress bars off inside the block and restore the caller's setting after it."""
    logging = need("transformers.utils.logging", "torch")
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()
