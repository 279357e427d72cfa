"""The `dinojax` command, one file a word."""
