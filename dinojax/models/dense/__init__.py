"""Heads that predict a value for every pixel."""
