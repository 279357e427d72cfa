"""Configs of evaluations, a file each: `dinojax evaluate --config=NAME`."""
