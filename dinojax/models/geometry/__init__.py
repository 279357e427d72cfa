"""Networks that see several images of one scene."""
