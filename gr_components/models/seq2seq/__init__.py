"""Encoder-decoders. Importing a module of this package loads torch; `gr_components.models.description` does not."""
