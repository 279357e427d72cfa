"""Engines: what does the tasks of a phase, here, on a cluster, or in part."""
