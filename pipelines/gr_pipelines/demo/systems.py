"""
Retrieval systems as functions from questions to scored documents, composed as the shipped pipelines compose them.

Haystack has no batches of questions; these functions give whole batches to the engines under the components, and use
the components of the loaded pipeline for fusion, ranking and reading, so that figures are those of the pipeline.
"""

from collections.abc import Callable, Sequence

from haystack import Document, Pipeline
from haystack.components.joiners import DocumentJoiner

from gr_components.decoding.config import SearchConfig
from gr_components.decoding.engine import GenerativeEngine
from gr_components.document_stores.local import LocalDocumentStore
from gr_components.models.text_encoder import TextEncoder
from gr_components.rankers.cross_encoder import CrossEncoderRanker

Search = Callable[[Sequence[str]], list[list[Document]]]

DEPTH = 100


def remembered(search: Search) -> Search:
    """
    Return the same search with a memory, so that systems which share a part run it once.

    :param search: A search.
    """
    known: dict[str, list[Document]] = {}

    def run(questions: Sequence[str]) -> list[list[Document]]:
        new = list(dict.fromkeys(question for question in questions if question not in known))
        if new:
            known.update(zip(new, search(new), strict=True))
        return [known[question] for question in questions]

    return run


def lexical(store: LocalDocumentStore) -> Search:
    """
    Return BM25 over a store's documents.

    :param store: The store; its settings say whether pseudo-queries are text of the documents.
    """

    def run(questions: Sequence[str]) -> list[list[Document]]:
        return [store.scored_documents(hits) for hits in store.lexical_search(questions, top_k=DEPTH)]

    return run


def dense(store: LocalDocumentStore, encoder: TextEncoder, index: str = "dense") -> Search:
    """
    Return search by cosine similarity.

    :param store: The store.
    :param encoder: What its vectors were made with.
    :param index: Name of the vector index.
    """

    def run(questions: Sequence[str]) -> list[list[Document]]:
        vectors_QE = encoder.encode(questions, prefix=encoder.prompt("query"))
        found = store.vector_search(vectors_QE, index=index, top_k=DEPTH, similarity="cosine")
        return [store.scored_documents(hits) for hits in found]

    return run


def generative(
    store: LocalDocumentStore, engine: GenerativeEngine, config: SearchConfig | None = None, index: str = "generative"
) -> Search:
    """
    Return generative search.

    :param store: The store.
    :param engine: The model; the index must be made for its tokenizer.
    :param config: Settings that replace the engine's.
    :param index: Name of the generative index.
    """

    def run(questions: Sequence[str]) -> list[list[Document]]:
        snapshot = store.suffix_index(index)
        results = engine.search(questions, snapshot.index, top_k=DEPTH, config=config)
        return [store.scored_documents([(hit.number, hit.score) for hit in result.hits]) for result in results]

    return run


def fused(searches: Sequence[Search], joiner: DocumentJoiner) -> Search:
    """
    Return the fusion of several searches.

    :param searches: What to fuse, in the order of the pipeline.
    :param joiner: The pipeline's component.
    """

    def run(questions: Sequence[str]) -> list[list[Document]]:
        lists = zip(*(search(questions) for search in searches), strict=True)
        return [joiner.run(documents=list(several))["documents"] for several in lists]

    return run


def ranked(search: Search, pipeline: Pipeline) -> Search:
    """
    Return what the pipeline makes of a search's results: the cross-encoder reads the best, its score joins theirs.

    :param search: The fused search.
    :param pipeline: The shipped pipeline `hybrid` or `qa`, with the components `best`, `ranker` and `final`.
    """
    best, ranker, final = (pipeline.get_component(name) for name in ("best", "ranker", "final"))

    def run(questions: Sequence[str]) -> list[list[Document]]:
        results = []
        for question, found in zip(questions, search(questions), strict=True):
            candidates = best.run(documents=[found])["documents"]
            scored = ranker.run(query=question, documents=candidates)["documents"]
            results.append(final.run(documents=[found, scored], top_k=DEPTH)["documents"])
        return results

    return run


def reranked(search: Search, ranker: CrossEncoderRanker, candidates: int) -> Search:
    """
    Return a search whose best results are ordered by the cross-encoder alone.

    :param search: The search.
    :param ranker: The cross-encoder.
    :param candidates: How many results it reads; the others follow in their order.
    """

    def run(questions: Sequence[str]) -> list[list[Document]]:
        results = []
        for question, found in zip(questions, search(questions), strict=True):
            scored = ranker.run(query=question, documents=found[:candidates], top_k=candidates)["documents"]
            results.append(scored + found[candidates:])
        return results

    return run


def run_of(results: Sequence[Sequence[Document]], ids: Sequence[str]) -> dict[str, list[tuple[str, float]]]:
    """
    Return results as a run whose scores are falling, in the order that the search gave.

    :param results: Documents of each question.
    :param ids: The questions' ids.
    """
    return {
        identity: [(document.id, 1.0 / rank) for rank, document in enumerate(found, start=1)]
        for identity, found in zip(ids, results, strict=True)
    }
