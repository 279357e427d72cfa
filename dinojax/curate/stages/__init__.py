"""Stages of a recipe, one file each."""
