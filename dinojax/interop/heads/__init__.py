"""Tables of tensor names of published heads, used in both directions."""
