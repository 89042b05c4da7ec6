"""An example of a package that adds to Tango. Each module registers one thing when it is imported."""
