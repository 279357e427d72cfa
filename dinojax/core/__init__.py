"""Config machinery, trees, logs, errors."""
