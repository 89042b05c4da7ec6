"""Examples to run and to copy from: `python -m tango.examples.NAME`."""
