"""Sketches of samples that merge: mean embeddings by random features.

The frequencies are those of :mod:`fastmmd.frequencies`, files those of
:mod:`fastmmd.sketch.files`.
"""

from fastmmd.sketch.embedding import MeanEmbedding

__all__ = ["MeanEmbedding"]
