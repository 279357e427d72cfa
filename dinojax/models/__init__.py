"""Vision transformers, heads, published sizes."""
