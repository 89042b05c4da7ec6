"""Pure tensor functions: no model, no method, no state. Shape letters: see `tango.annotations`."""
