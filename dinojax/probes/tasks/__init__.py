"""Tasks that heads learn, a file each."""
