"""Programs that print one JSON line a figure."""
