"""Readers of the layouts that benchmarks come in; nothing is downloaded."""
