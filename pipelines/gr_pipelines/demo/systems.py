"""
Retrieval systems as functions from questions to scored documents, composed as the shipped pipelines compose them.

Haystack has no batches of questions; these functions call the components of the loaded pipeline, with whole batches
where they take them, so that figures are those of the pipeline.
"""

from collections.abc import Callable, Sequence
from typing import Protocol

from haystack import Document, Pipeline

from gr_components.joiners.score_fusion import ScoreFusionJoiner
from gr_components.retrievers.bm25 import BM25Retriever

Search = Callable[[Sequence[str]], list[list[Document]]]

DEPTH = 100


class Retriever(Protocol):
    """A retriever that takes several questions at once."""

    def retrieve(self, queries: Sequence[str], *, top_k: int | None = None) -> list[list[Document]]:
        """
        Find documents for each of several questions.

        :param queries: The questions.
        :param top_k: Most documents for each.
        """
        ...


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


def lexical(retriever: BM25Retriever) -> Search:
    """
    Return BM25.

    :param retriever: A component; the settings of its store say whether pseudo-queries are text of the documents.
    """
    return lambda questions: [retriever.run(query=question, top_k=DEPTH)["documents"] for question in questions]


def batched(retriever: Retriever) -> Search:
    """
    Return dense or generative search.

    :param retriever: A component that takes several questions at once.
    """
    return lambda questions: retriever.retrieve(questions, top_k=DEPTH)


def fused(searches: Sequence[Search], joiner: ScoreFusionJoiner) -> Search:
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
