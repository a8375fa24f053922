"""FiDReader: answers a question from retrieved documents with a Fusion-in-Decoder model."""

from typing import TYPE_CHECKING, Any

from haystack import Document, GeneratedAnswer, component
from haystack.utils import ComponentDevice, Secret

from gr_components.data.records import Passage
from gr_components.extras import need
from gr_components.lifecycle import Lifecycle
from gr_components.models.checks import check_count
from gr_components.readers.config import ReadConfig
from gr_components.settings import Serializable, check_model_settings, check_top_k, load_arguments

if TYPE_CHECKING:
    from gr_components.readers.fusion import Answer, FusionReader, Reading


@component
class FiDReader(Serializable, Lifecycle["FusionReader"]):
    """
    Reads several documents at once and writes the answer (https://arxiv.org/abs/2007.01282).

    Each document is encoded alone together with the question, and the decoder attends to all of them, so that their
    order makes no difference. The answer is shown as a document writes it when one contains it.

    Every `GeneratedAnswer` has the documents that were read, ordered by how much the decoder attended to them, and in
    `meta`: `log_probability` of the answer, `passage_scores` ({document id: attention logit}, comparable within one
    question), `answer_document` (id of the document that the answer was taken from, or None), `answer_span` (first and
    one past last character in that document's content, or None) and `generated` (what the model wrote).

    ```python
    from haystack import Document
    from gr_components.readers.fid import FiDReader

    reader = FiDReader(model="package:gr_pipelines/models/reader")
    documents = [Document(content="Super Bowl 50 was played in Santa Clara.", meta={"title": "Super Bowl 50"})]
    print(reader.run(query="What stadium hosted Super Bowl 50?", documents=documents)["answers"][0].data)
    ```
    """

    def __init__(
        self,
        model: str,
        *,
        top_k: int = 5,
        num_answers: int = 1,
        num_beams: int = 1,
        max_answer_tokens: int | None = None,
        max_passage_tokens: int | None = None,
        length_penalty: float = 0.0,
        extractive: bool = False,
        retrieval_weight: float = 0.0,
        title_field: str = "title",
        batch_size: int = 32,
        device: ComponentDevice | None = None,
        dtype: str = "float32",
        revision: str | None = None,
        token: Secret | None = Secret.from_env_var(["HF_API_TOKEN", "HF_TOKEN"], strict=False),  # noqa: B008
        local_files_only: bool = False,
        model_kwargs: dict[str, Any] | None = None,
    ) -> None:
        """
        Store the settings; the model is loaded by `warm_up` or the first `run`.

        :param model: A reader made by the recipe `fid`, or a BART or T5: a local folder, `package:NAME/FOLDER` or a
            Hugging Face name.
        :param top_k: How many documents are read: the first ones given.
        :param num_answers: How many answers are returned, at most `num_beams`.
        :param num_beams: Beam width; 1 is greedy decoding.
        :param max_answer_tokens: Longest answer; None for the model's own limit.
        :param max_passage_tokens: Longest input, question included, in tokens; None for the model's own limit. The end
            of a longer document is not read.
        :param length_penalty: Log-probabilities are divided by length to this power before answers are compared.
        :param extractive: Whether answers must be spans of a document (models that the recipe `fid` made from a BERT).
        :param retrieval_weight: How much the documents' scores count: score times this is added to the logits of the
            attention to a document, so that the reader looks first where the search was sure. For scores of about 0..1
            such as those of the pipeline `hybrid`, 5 is a good value; 0 reads all documents alike, as in the paper.
        :param title_field: Metadata field that holds a document's title.
        :param batch_size: Documents that are encoded at a time.
        :param device: Where the model runs; None for the best device there is.
        :param dtype: `float32`, `float16` or `bfloat16`.
        :param revision: Branch, tag or commit on the model hub.
        :param token: Access token for the model hub.
        :param local_files_only: Use only what is cached already.
        :param model_kwargs: Passed to `from_pretrained` of plain Hugging Face models.
        :raises ConfigError: If a number is out of range.
        """
        self.model = str(model)
        self.top_k = top_k
        self.num_answers = num_answers
        self.num_beams = num_beams
        self.max_answer_tokens = max_answer_tokens
        self.max_passage_tokens = max_passage_tokens
        self.length_penalty = length_penalty
        self.extractive = extractive
        self.retrieval_weight = retrieval_weight
        self.title_field = title_field
        self.batch_size = batch_size
        self.device = device
        self.dtype = dtype
        self.revision = revision
        self.token = token
        self.local_files_only = local_files_only
        self.model_kwargs = model_kwargs
        check_top_k(top_k, least=1)
        check_model_settings(batch_size=batch_size, dtype=dtype)
        if max_passage_tokens is not None:
            check_count("max_passage_tokens", max_passage_tokens, least=1)
        self._config()
        self._start_lifecycle()

    @component.output_types(answers=list[GeneratedAnswer])
    def run(
        self,
        query: str,
        documents: list[Document],
        top_k: int | None = None,
        num_answers: int | None = None,
        num_beams: int | None = None,
        max_answer_tokens: int | None = None,
        length_penalty: float | None = None,
        extractive: bool | None = None,
        retrieval_weight: float | None = None,
    ) -> dict[str, list[GeneratedAnswer]]:
        """
        Answer a question.

        :param query: The question.
        :param documents: Documents, best first. Those without text and repetitions of an id are skipped.
        :param top_k: How many documents are read; 0 reads none. None, here and below, means as configured.
        :param num_answers: How many answers are returned.
        :param num_beams: Beam width.
        :param max_answer_tokens: Longest answer in tokens.
        :param length_penalty: See `__init__`.
        :param extractive: See `__init__`.
        :param retrieval_weight: See `__init__`.
        :returns: `answers`, best first; empty if there is no question or nothing to read.
        :raises ConfigError: If a number is out of range or does not fit the model.
        """
        top_k = self.top_k if top_k is None else top_k
        check_top_k(top_k, least=0)
        config = self._config(num_beams, num_answers, max_answer_tokens, length_penalty, extractive, retrieval_weight)
        reader = self._engine()
        used = _readable(documents)[:top_k]
        passages = [Passage(d.id, str(d.meta.get(self.title_field) or ""), d.content or "") for d in used]
        with self._serial:
            (reading,) = reader.read([query], [passages], config, scores=[[d.score for d in used]])
        return {"answers": [self._answer(query, used, reading, answer) for answer in reading.answers]}

    @component.output_types(answers=list[GeneratedAnswer])
    async def run_async(
        self,
        query: str,
        documents: list[Document],
        top_k: int | None = None,
        num_answers: int | None = None,
        num_beams: int | None = None,
        max_answer_tokens: int | None = None,
        length_penalty: float | None = None,
        extractive: bool | None = None,
        retrieval_weight: float | None = None,
    ) -> dict[str, list[GeneratedAnswer]]:
        """
        Answer a question without blocking the event loop.

        :param query: The question.
        :param documents: Documents, best first.
        :param top_k: How many documents are read.
        :param num_answers: How many answers are returned.
        :param num_beams: Beam width.
        :param max_answer_tokens: Longest answer in tokens.
        :param length_penalty: See `__init__`.
        :param extractive: See `__init__`.
        :param retrieval_weight: See `__init__`.
        :returns: What `run` returns.
        """
        return await self._in_thread(
            self.run, query, documents, top_k, num_answers, num_beams, max_answer_tokens, length_penalty, extractive,
            retrieval_weight,
        )  # fmt: skip

    def _load(self) -> "FusionReader":
        need("torch", "torch")
        need("transformers", "torch")
        from gr_components.models.seq2seq.folder import load_seq2seq
        from gr_components.readers.fusion import FusionReader

        loaded = load_seq2seq(self.model, **load_arguments(self))
        return FusionReader(loaded, max_passage_tokens=self.max_passage_tokens)

    def _config(
        self,
        num_beams: int | None = None,
        num_answers: int | None = None,
        max_answer_tokens: int | None = None,
        length_penalty: float | None = None,
        extractive: bool | None = None,
        retrieval_weight: float | None = None,
    ) -> ReadConfig:
        return ReadConfig(
            num_beams=self.num_beams if num_beams is None else num_beams,
            num_answers=self.num_answers if num_answers is None else num_answers,
            max_answer_tokens=self.max_answer_tokens if max_answer_tokens is None else max_answer_tokens,
            length_penalty=self.length_penalty if length_penalty is None else length_penalty,
            extractive=self.extractive if extractive is None else extractive,
            retrieval_weight=self.retrieval_weight if retrieval_weight is None else retrieval_weight,
            batch_size=self.batch_size,
        )

    def _answer(self, query: str, used: list[Document], reading: "Reading", answer: "Answer") -> GeneratedAnswer:
        scored = [(d, s) for d, s in zip(used, reading.relevance, strict=True) if s is not None]
        scored.sort(key=lambda pair: -pair[1])
        meta = {
            "log_probability": answer.log_probability,
            "passage_scores": {document.id: score for document, score in scored},
            "answer_document": None if answer.passage is None else used[answer.passage].id,
            "answer_span": None if answer.span is None else list(answer.span),
            "generated": answer.generated,
        }
        return GeneratedAnswer(data=answer.text, query=query, documents=[d for d, _ in scored], meta=meta)


def _readable(documents: list[Document]) -> list[Document]:
    """Documents with text, each id once."""
    by_id: dict[str, Document] = {}
    for document in documents:
        if document.content is not None and document.content.strip():
            by_id.setdefault(document.id, document)
    return list(by_id.values())
