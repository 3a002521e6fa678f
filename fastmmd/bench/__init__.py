"""Benchmarks that give a verdict: ``fastmmd bench`` and :mod:`fastmmd.testing` stand on it."""
