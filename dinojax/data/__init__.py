"""Images to batches on the host; no jax here."""
