"""Tango's decisions for all segments of a video at once: the fast engine behind `tango.methods.tango`, and only it."""

from tango.batched.engine import Options, Segments, prune_segments

__all__ = ["Options", "Segments", "prune_segments"]
