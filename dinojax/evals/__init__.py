"""Evaluations of frozen features: k-NN, linear, segmentation, depth."""
