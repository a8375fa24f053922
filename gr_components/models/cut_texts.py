"""What a model did not read, because it takes only so many tokens: a warning the first time, for debugging later."""

import logging
from collections.abc import Iterable, Sequence

logger = logging.getLogger(__name__)


class CutTexts:
    """
    Tells of texts that lost their end: one warning for each kind of text, then messages of level DEBUG.

    It belongs to a loaded model, so that a service that ranks long passages all day is told once, not by every query.
    """

    def __init__(self) -> None:
        self._told: set[str] = set()

    def report(self, kind: str, texts: Sequence[str], lost: Iterable[bool], limit: int) -> None:
        """
        Tell of texts that were cut; nothing is said if there are none.

        :param kind: What the texts are, in the plural.
        :param texts: All texts.
        :param lost: For each of them whether it lost its end.
        :param limit: Tokens that are read of each.
        """
        cut = [text for text, shorter in zip(texts, lost, strict=True) if shorter]
        if not cut:
            return
        again = kind in self._told
        self._told.add(kind)
        once = "" if again else " (said once; more at level DEBUG)"
        logger.log(
            logging.DEBUG if again else logging.WARNING,
            "%d of %d %s are longer than the %d tokens that the model reads; their end is left out%s. The first is: %s",
            len(cut), len(texts), kind, limit, once, cut[0].strip()[:60].rstrip(),
        )  # fmt: skip
