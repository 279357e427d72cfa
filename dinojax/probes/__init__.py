"""Heads on frozen features: what they learn, and the training of many."""
