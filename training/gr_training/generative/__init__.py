"""Training of generative retrievers: which identifiers they learn, which lists they rank, and where both come from."""
