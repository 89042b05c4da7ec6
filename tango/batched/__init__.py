"""Tango's decisions for all segments of a video at once: the fast engine of `tango.methods.tango`, and of it alone."""

from tango.batched.engine import Options, Segments, prune_segments

__all__ = ["Options", "Segments", "prune_segments"]
