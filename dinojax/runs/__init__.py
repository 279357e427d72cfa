"""Runs: from a config and a folder to weights, results and reports."""
