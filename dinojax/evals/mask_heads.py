"""Heads of queries for a backbone: their sizes, and how they learn."""

from typing import Any, Protocol

import numpy as np

from dinojax.core import errors
from dinojax.features import backbone as backbone_lib
from dinojax.models.dense import mask_decoder
from dinojax.probes.tasks import depth
from dinojax.probes.tasks import masks

NUM_LAYERS = 4  # of the backbone that are read, evenly from the first
LEARNING_RATE, WEIGHT_DECAY, CLIP_NORM = 2e-4, 0.05, 0.01
# First and last step of the fall of masked attention of each of six blocks, in
# parts of the training. Source: PMT's on ADE20K.
ANNEAL = ((0.0, 0.149), (0.267, 0.433), (0.367, 0.533), (0.467, 0.633),
          (0.567, 0.733), (0.667, 0.833))


class Sizes(Protocol):
  """Values of a section that has queries."""

  num_queries: int
  num_blocks: int
  num_points: int
  steps: int


def check(name: str, recipe: str, config: Any):
  """Refuses backbones without tokens.

  Raises:
    UserError: it is a ConvNeXt.
  """
  if not config.has_attention:
    raise errors.UserError(
        f'{name}.recipe={recipe} has queries among the tokens of a ViT, and '
        'this is a ConvNeXt: give a ViT, or a linear head by '
        'segmentation.recipe=v3')


def task(values: Sizes, model: backbone_lib.Backbone, num_classes: int, *,
         num_layers: int = NUM_LAYERS, **more: Any) -> masks.Masks:
  """The task of the plain mask decoder.

  Args:
    values: sizes.
    model: the backbone.
    num_classes: classes, without that of no object.
    num_layers: layers of the backbone that are read.
    **more: other fields of the task.
  """
  config = model.config
  layers = depth.read_layers(config.depth, num_layers)
  layers = layers if isinstance(layers, tuple) else (config.depth - 1,)
  return masks.Masks(
      decoder=mask_decoder.Config(
          width=config.embed_dim, num_heads=config.num_heads,
          num_classes=num_classes, patch_px=config.side_px,
          num_queries=values.num_queries, num_blocks=values.num_blocks,
          num_levels=len(layers)),
      layers=layers, num_points=values.num_points,
      anneal=falls(values.num_blocks, values.steps), **more)


def falls(num_blocks: int, steps: int) -> tuple[tuple[int, int], ...]:
  """First and last step of the fall of masked attention, of each block."""
  chosen = np.linspace(len(ANNEAL) - 1, 0, num_blocks).round()[::-1]
  return tuple(tuple(round(part * steps) for part in ANNEAL[int(i)])
               for i in chosen)
