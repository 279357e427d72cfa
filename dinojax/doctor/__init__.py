"""Checks of `dinojax doctor`: a machine, a config and its images."""
