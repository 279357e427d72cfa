"""Weights of other libraries, in both directions."""
