"""Frozen features of images: one backbone, one stream, one store."""
