"""Heads of queries for a backbone: their sizes, and how they learn."""

from collections.abc import Callable, Mapping
import dataclasses
from typing import Any, Protocol

import numpy as np

from dinojax.core import errors
from dinojax.core import tree
from dinojax.engine import schedules
from dinojax.features import backbone as backbone_lib
from dinojax.models.dense import adapter
from dinojax.models.dense import eomt
from dinojax.models.dense import mask2former
from dinojax.models.dense import mask_decoder
from dinojax.models.dense import parts
from dinojax.probes.tasks import dense
from dinojax.probes.tasks import depth
from dinojax.probes.tasks import eomt as eomt_task
from dinojax.probes.tasks import mask2former as mask2former_task
from dinojax.probes.tasks import masks

NUM_LAYERS = 4  # of the backbone that are read, evenly from the first
WEIGHT_DECAY, CLIP_NORM = 0.05, 0.01
# First and last step of the fall of masked attention of each of six blocks, in
# parts of the training. Source: PMT's on ADE20K.
ANNEAL = ((0.0, 0.149), (0.267, 0.433), (0.367, 0.533), (0.467, 0.633),
          (0.567, 0.733), (0.667, 0.833))
# Of any number of blocks: starts of the first and of the last, and the length
# of each. Source: EoMT's, whose last sixth is not masked.
EVENLY = (1 / 6, 2 / 3, 1 / 6)


@dataclasses.dataclass(frozen=True)
class Learning:
  """Values of a recipe.

  Attributes:
    num_blocks: blocks or layers of the queries; None: by the depth of the
      backbone.
    learning_rate: the highest rate.
    warmup_steps: updates until then, of a training of many.
    power: exponent of the fall of the rate to 0; None: half a cosine.
    decays: parameters to factors of their weight decay; None: all decay.
  """

  num_blocks: int | None
  learning_rate: float
  warmup_steps: int
  power: float | None = None
  decays: Callable[[tree.Tree], tree.Tree] | None = None


# PMT's, EoMT's; Mask2Former's, which v3 has not published.
RECIPES: Mapping[str, Learning] = {
    'masks': Learning(len(ANNEAL), 2e-4, 6000),
    'eomt': Learning(None, 1e-4, 1500, power=0.9),
    'm2f': Learning(9, 1e-4, 1500, power=1.0,
                    decays=mask2former.weight_decays)}


class Sizes(Protocol):
  """Values of a section that has queries.

  The recipe m2f also reads hidden and num_pixel_layers.
  """

  recipe: str
  num_queries: int
  num_blocks: int | None
  num_points: int
  steps: int


def check(name: str, values: Any, config: Any):
  """Refuses backbones without tokens, and sizes that a head does not take.

  Args:
    name: name of the section.
    values: its values, crop_px among them.
    config: the backbone's.

  Raises:
    UserError: it is a ConvNeXt, has fewer blocks than queries shall be in, or
      crops or widths are no such multiples.
  """
  if not config.has_attention:
    raise errors.UserError(
        f'{name}.recipe={values.recipe} has queries among the tokens of a ViT, '
        'and this is a ConvNeXt: give a ViT, or a linear head by '
        'segmentation.recipe=v3')
  if values.recipe == 'eomt' and (values.num_blocks or 0) > config.depth:
    raise errors.UserError(
        f'{name}.num_blocks={values.num_blocks}: queries enter the last blocks '
        f'of the backbone, which has {config.depth}: set {name}.num_blocks='
        f'{eomt.usual_blocks(config.depth)}')
  if values.recipe == 'm2f':
    _check_adapter(name, values, config)


def _check_adapter(name: str, values: Any, config: Any):
  """Refuses sizes that an adapter and its norms do not take; see `check`."""
  layers = getattr(values, 'layers', NUM_LAYERS)
  if layers != NUM_LAYERS:
    raise errors.UserError(
        f'{name}.layers={layers}, and the adapter of the recipe m2f reads '
        f'{NUM_LAYERS}: leave it away')
  if values.hidden % parts.GROUPS:
    whole = max(round(values.hidden / parts.GROUPS), 1) * parts.GROUPS
    raise errors.UserError(
        f'{name}.hidden={values.hidden} is no multiple of {parts.GROUPS}, the '
        f'groups of its norms: set {name}.hidden={whole}')
  try:
    adapter.check((values.crop_px,) * 2, config.side_px)
  except errors.UserError as error:
    raise errors.UserError(
        f'{name}.crop_px={values.crop_px}: {error}') from error


def task(values: Sizes, model: backbone_lib.Backbone, num_classes: int, *,
         pixels: dense.Pixels, num_layers: int = NUM_LAYERS,
         **more: Any) -> masks.Queries:
  """The task of a recipe.

  Args:
    values: sizes.
    model: the backbone.
    num_classes: classes, without that of no object.
    pixels: pixels of the backbone.
    num_layers: layers of the backbone that are read, by the recipe masks.
    **more: other fields of the task.
  """
  config, more = model.config, more | {'num_points': values.num_points}
  if values.recipe == 'm2f':
    return _mask2former(values, config, num_classes, pixels, more)
  more['pixels'] = pixels
  if values.recipe == 'eomt':
    count = values.num_blocks or eomt.usual_blocks(config.depth)
    return eomt_task.Eomt(
        decoder=eomt.Config(
            config.inference(), num_classes=num_classes, num_blocks=count,
            num_queries=values.num_queries),
        anneal=falls_evenly(count, values.steps), **more)
  layers = depth.read_layers(config.depth, num_layers)
  layers = layers if isinstance(layers, tuple) else (config.depth - 1,)
  count = values.num_blocks or RECIPES[values.recipe].num_blocks
  return masks.Masks(
      decoder=mask_decoder.Config(
          width=config.embed_dim, num_heads=config.num_heads,
          num_classes=num_classes, patch_px=config.side_px,
          num_queries=values.num_queries, num_blocks=count,
          num_levels=len(layers)),
      layers=layers, anneal=falls(count, values.steps), **more)


def _mask2former(values: Any, config: Any, num_classes: int,
                 pixels: dense.Pixels, more: dict[str, Any]
                 ) -> mask2former_task.Mask2Former:
  """The task of the recipe m2f, see `task`."""
  sizes = mask2former.of_sizes(
      config.embed_dim, num_classes, patch_px=config.side_px,
      hidden=values.hidden, num_queries=values.num_queries,
      num_pixel_layers=values.num_pixel_layers,
      num_layers=values.num_blocks or RECIPES['m2f'].num_blocks)
  return mask2former_task.Mask2Former(
      decoder=sizes, layers=depth.read_layers(config.depth, NUM_LAYERS),
      pixels=dataclasses.replace(pixels, patch_px=sizes.adapter.unit_px),
      **more)


def learning(made: masks.Queries, values: Sizes,
             warmup_steps: int) -> dict[str, Any]:
  """Schedule of a head's training, and what else it is: see probes.fit.

  Args:
    made: the task.
    values: its recipe, and the length of the training.
    warmup_steps: updates until the highest rate; of EoMT what is new rises
      for a third of them, and copied blocks, which wait, for the others.
  """
  recipe = RECIPES[values.recipe]
  curve = lambda rise, wait=0: schedules.RiseFall(
      values.steps, rise, wait, recipe.power)
  if not isinstance(made, eomt_task.Eomt):
    whole = curve(warmup_steps)
    return {'schedule': lambda step: {'lr': whole(step)},
            'clip_norm': CLIP_NORM, 'decays': recipe.decays}
  first = warmup_steps // 3
  return {'schedule': lambda step: {}, 'clip_norm': CLIP_NORM,
          'factors': eomt_task.Factors(made.decoder, curve(first), curve(
              warmup_steps - first, first))}


def falls(num_blocks: int, steps: int) -> tuple[tuple[int, int], ...]:
  """First and last step of the fall of masked attention, of each block."""
  chosen = np.linspace(len(ANNEAL) - 1, 0, num_blocks).round()[::-1]
  return tuple(tuple(round(part * steps) for part in ANNEAL[int(i)])
               for i in chosen)


def falls_evenly(num_blocks: int, steps: int) -> tuple[tuple[int, int], ...]:
  """The same, one block after the other."""
  first, last, length = EVENLY
  return tuple((round(start * steps), round((start + length) * steps))
               for start in np.linspace(first, last, num_blocks).tolist())
