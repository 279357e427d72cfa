"""One file a recipe; see common.py for what they share."""
