"""Encoders, cross-encoders and encoder-decoders: torch and ONNX backends with the same numbers. No Haystack here."""
