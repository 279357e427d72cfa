"""Text beside images: the text tower and the vision head of dino.txt."""
