"""Recipes of `dinojax curate`."""
