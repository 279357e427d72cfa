"""Mesh, sharding, processes: the one room that names mesh axes."""
