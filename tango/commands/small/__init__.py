"""`tango small`: train the projector between a real vision tower and a real language model, and evaluate."""
