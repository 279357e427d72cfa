"""dinojax: DINOv2 and DINOv3 in JAX."""

__version__ = '0.1.0'
__all__ = ['load']


def load(path: str, *, num_heads: int | None = None,
         image_px: int | None = None, exact_periods: bool = False):
  """A ready model from any weights, see `dinojax.weights.read`."""
  from dinojax import model  # only now: importing dinojax imports no JAX
  return model.load(path, num_heads=num_heads, image_px=image_px,
                    exact_periods=exact_periods)
