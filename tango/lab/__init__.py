"""The laboratory: benchmarks, scorecard and the training of the small model. The library itself does not need it."""
