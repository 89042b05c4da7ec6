"""The commands of `tango`, one module each: `add_arguments` and `run`."""
