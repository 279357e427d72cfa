"""The terms of the loss, one file each; `sections.Settings` lists them.

A term is a section of the config that knows what it does: what it wants of
the networks, its targets, its value and weight, its mistakes and its FLOPs.
"""
