"""Protocols of evaluation, a file each; see evals.registry."""
