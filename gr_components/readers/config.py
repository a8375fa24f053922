"""How a reader searches answers; checked where it is made, so that a wrong setting never waits for a model to load."""

from dataclasses import dataclass

from gr_components.errors import ConfigError
from gr_components.models.checks import check_count, check_number


@dataclass(frozen=True, kw_only=True)
class ReadConfig:
    """
    How answers are searched.

    :param num_beams: Beam width; 1 is greedy.
    :param num_answers: Answers per question, at most `num_beams`.
    :param max_answer_tokens: Longest answer, at least 2 (one token and the end); None for the model's own limit.
    :param length_penalty: See `GenerationConfig`.
    :param extractive: Whether an answer must be a span of a passage (models with the `reserved` layout).
    :param retrieval_weight: How much the passages' scores count: the score times this is added to the logits of
        attention to a passage, >= 0. 0 reads all passages alike, as in the paper.
    :param batch_size: Passages that are encoded at a time.
    :param closed_book: Whether questions without passages are answered all the same, from what the model knows: a
        control that shows what the passages are worth.
    :raises ConfigError: If a number is out of range.
    """

    num_beams: int = 1
    num_answers: int = 1
    max_answer_tokens: int | None = None
    length_penalty: float = 0.0
    extractive: bool = False
    retrieval_weight: float = 0.0
    batch_size: int = 32
    closed_book: bool = False

    def __post_init__(self) -> None:
        for name in ("num_beams", "num_answers", "batch_size"):
            check_count(name, getattr(self, name), least=1)
        if self.max_answer_tokens is not None:
            check_count("max_answer_tokens", self.max_answer_tokens, least=2)
        check_number("length_penalty", self.length_penalty)
        check_number("retrieval_weight", self.retrieval_weight, least=0)
        if self.num_answers > self.num_beams:
            msg = f"num_answers={self.num_answers} needs as many beams; num_beams is {self.num_beams}."
            raise ConfigError(msg)
