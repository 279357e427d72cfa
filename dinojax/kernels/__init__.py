"""Attention and resampling."""
