"""
Search and question-answering components for Haystack: generative and dense retrieval, ranking, Fusion-in-Decoder.

Importing this package loads no model library; each component imports what it needs when it warms up.
"""

__version__ = "0.1.0"
