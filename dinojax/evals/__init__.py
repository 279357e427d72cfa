"""What frozen features are worth, and pictures of them."""
