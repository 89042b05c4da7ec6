"""Tango's models in VLMEvalKit. `run.py` beside this package registers them and starts the toolkit's own runner."""
