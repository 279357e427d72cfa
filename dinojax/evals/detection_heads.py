"""Detectors for a backbone: their sizes, and how they learn."""

import math
from typing import Any, Protocol

from dinojax.core import errors
from dinojax.core import tree
from dinojax.engine import schedules
from dinojax.features import backbone as backbone_lib
from dinojax.features import spec
from dinojax.features import windowed
from dinojax.models.dense import box_decoder
from dinojax.models.dense import detector
from dinojax.models.dense import parts
from dinojax.models.dense import proposals
from dinojax.probes.tasks import dense
from dinojax.probes.tasks import detect

NUM_LAYERS = 4  # of the backbone that are read, evenly up to the last
CLIP_NORM, BETA2 = 0.1, 0.999
_DROP = 11 / 12  # of the training, after which the rate is a tenth
_FREE = ('columns', 'rows')  # networks of distances, which do not decay


class Sizes(Protocol):
  """Values of a section that detects."""

  hidden: int
  num_heads: int
  num_layers: int
  num_encoder_layers: int
  num_queries: int
  num_extra: int
  copies: int
  dropout: float
  box_px: float
  windows: int
  crop_px: int
  most_targets: int


def read_layers(depth: int) -> tuple[int, ...]:
  """Last layer of every quarter of a backbone.

  Source: DINOv3's detector; its other heads read block 4 of 24, not 5.
  """
  count = min(NUM_LAYERS, depth)
  return tuple((i + 1) * depth // count - 1 for i in range(count))


def check(name: str, values: Sizes, config: Any):
  """Refuses backbones without blocks, and sizes that do not fit each other.

  Args:
    name: name of the section.
    values: sizes.
    config: the backbone.

  Raises:
    UserError: such a backbone or size.
  """
  if not config.has_attention:
    raise errors.UserError(
        f'{name} reads the blocks of a ViT, and this is a ConvNeXt: give a ViT')
  unit = math.lcm(parts.GROUPS, values.num_heads)
  if values.hidden % unit:
    whole = max(round(values.hidden / unit), 1) * unit
    raise errors.UserError(
        f'{name}.hidden={values.hidden} is no multiple of {parts.GROUPS} and '
        f'of {values.num_heads} heads: set {name}.hidden={whole}')
  check_side(f'{name}.crop_px', values.crop_px, config.side_px,
             values.windows, values.num_queries + values.num_extra)
  if values.copies * values.most_targets > values.num_extra > 0:
    raise errors.UserError(
        f'{name}.copies={values.copies} of {name}.most_targets='
        f'{values.most_targets} objects are more than {name}.num_extra='
        f'{values.num_extra} queries: set {name}.num_extra='
        f'{values.copies * values.most_targets}')


def check_side(name: str, side_px: int, patch_px: int, windows: int,
               num_queries: int):
  """Refuses squares that are no whole patches, or too small.

  Args:
    name: key or flag that gives the side, for messages.
    side_px: side of the square.
    patch_px: side of a patch.
    windows: windows along a side.
    num_queries: queries, each of which begins at a proposal.

  Raises:
    UserError: such a square.
  """
  if side_px % patch_px or side_px < patch_px:
    whole = max(round(side_px / patch_px), 1) * patch_px
    raise errors.UserError(
        f'{name}={side_px} is no whole number of patches of {patch_px} pixels: '
        f'set {name}={whole}')
  most = proposals.count((side_px // patch_px,) * 2)
  if most < num_queries:
    raise errors.UserError(
        f'{name}={side_px} gives {most} proposals for {num_queries} queries: '
        'give a larger square, or a head of fewer queries')
  if windows:
    try:
      windowed.edges(side_px, windows, patch_px)
    except ValueError as error:
      raise errors.UserError(
          f'{name}={side_px} and windows={windows}: {error}') from error


def task(values: Sizes, model: backbone_lib.Backbone,
         num_classes: int) -> detect.Detect:
  """The task of a detector.

  Args:
    values: sizes.
    model: the backbone.
    num_classes: classes.
  """
  layers, patch = read_layers(model.config.depth), model.config.side_px
  widths = spec.FeatureSpec(('map',), layers, windows=values.windows).widths(
      model.config)
  # As published from a width of 256 on; narrower heads are so throughout.
  ffn, inner = min(8 * values.hidden, 2048), min(2 * values.hidden, 512)
  return detect.Detect(
      decoder=detector.Config(
          widths, box_decoder.Config(
              num_classes, values.hidden, values.num_heads, ffn,
              values.num_layers, inner, patch),
          num_queries=values.num_queries, num_extra=values.num_extra,
          num_encoder_layers=values.num_encoder_layers, encoder_ffn=ffn,
          dropout=values.dropout, box_px=values.box_px,
          windows=values.windows),
      layers=layers, copies=values.copies,
      pixels=dense.Pixels(model.mean, model.std, patch))


def learning(steps: int, warmup_steps: int) -> dict[str, Any]:
  """Schedule of the training, and what else it is: see probes.fit.

  Source: Plain-DETR.
  """
  curve = schedules.Stepped(warmup_steps, round(steps * _DROP))
  return {'schedule': lambda step: {'lr': curve(step)},
          'clip_norm': CLIP_NORM, 'decays': weight_decays}


def weight_decays(params: tree.Tree) -> tree.Tree:
  """Factors of the weight decay, 0 or 1.

  Norms, biases, queries, the level and networks of distances do not decay.

  Source: Plain-DETR's training.
  """
  def factor(name, leaf):
    del leaf
    path = name.split('/')
    return float(path[-1] == 'kernel' and not set(path) & set(_FREE))

  return tree.map_with_name(factor, params)
