"""What acts on a model: pruning as a scoped change of one instance, and calls through it."""
