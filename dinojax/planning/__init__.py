"""Memory, FLOPs and time of a training step: estimated, compiled, measured."""
