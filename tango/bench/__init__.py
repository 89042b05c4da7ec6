"""Benchmarks, and the plain code that they compare against."""
