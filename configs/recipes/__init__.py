"""Chains of stages, one file a recipe: `--recipe=configs/recipes/x.py`."""
