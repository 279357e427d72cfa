"""What `dinojax doctor` says about a machine, a config and its images."""
