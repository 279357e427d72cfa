"""Settings, recipe, state, step and loop."""
