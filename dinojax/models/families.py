"""The families of backbones: a line of each, and nothing else names both.

A family's config answers what differs (grid, token_px, layer_dims, flops,
inference and so on, see vit_config); outside `models` and `interop` nobody
asks which family it is.
"""

from flax import nnx

from dinojax.models import convnext
from dinojax.models import vit

FAMILIES = {vit.ViTConfig: vit.ViT, convnext.ConvNeXtConfig: convnext.ConvNeXt}
Config = vit.ViTConfig | convnext.ConvNeXtConfig
Backbone = vit.ViT | convnext.ConvNeXt


def make(config: Config, *, rngs: nnx.Rngs) -> Backbone:
  """A backbone of the family of its config."""
  return FAMILIES[type(config)](config, rngs=rngs)
