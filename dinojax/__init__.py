"""dinojax: DINOv2 and DINOv3 in JAX."""

__version__ = '0.1.0'
