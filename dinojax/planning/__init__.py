"""What a config needs on a machine, before there is one."""
