"""Readers of the layouts of public sets, and of plain files of your own."""
