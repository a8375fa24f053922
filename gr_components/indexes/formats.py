"""Names and versions of what index folders hold, as their manifests say; knowing them needs no optional package."""

SUFFIX = ("gr.suffix", 1)
VECTORS = ("gr.vectors", 1)
