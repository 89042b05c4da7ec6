"""A package, because lmms-eval brings another one of this name along."""
