"""A backbone's weights for a config of another patch or image size."""

import math

import numpy as np

from dinojax.core import errors
from dinojax.core import tree
from dinojax.interop import reading
from dinojax.kernels import resample
from dinojax.models import convnext
from dinojax.models import positions
from dinojax.models import vit

# What a backbone cannot be changed in and stay what it has learned.
_FIXED = {
    'vit': ('embed_dim', 'depth', 'num_heads', 'num_channels', 'ffn',
            'position', 'norm', 'num_registers'),
    'convnext': ('depths', 'dims', 'num_channels')}


def backbone(weights: reading.Weights, config: reading.Config,
             shapes: tree.Tree, source: str) -> tuple[tree.Tree, list[str]]:
  """Parameters of `weights` in the shapes of `config`.

  Args:
    weights: backbone as read.
    config: configuration of the backbone that is trained.
    shapes: its abstract parameters.
    source: where the weights are from, for messages: 'init.source=DIR'.

  Returns:
    A tree that may lack leaves of `shapes`, float32 numpy; and sentences on
    what was resampled, what is missing and what is left over.

  Raises:
    UserError: another architecture.
  """
  _check(weights.config, config, source)
  params, notes = dict(weights.params), []
  if isinstance(config, vit.ViTConfig):
    params, notes = _resampled(params, weights.config, config)
  have, want = dict(tree.items(params)), dict(tree.items(shapes))
  for name in have.keys() & want.keys():
    if have[name].shape != want[name].shape:
      raise errors.UserError(
          f'{source}: {name} has shape {have[name].shape}, the '
          f'config asks for {want[name].shape}')
  for text, names in (('random, as the source has none', want.keys() - have),
                      ('not used', have.keys() - want)):
    if names:
      notes.append(f'{", ".join(sorted(names))}: {text}')
  return params, notes


def _resampled(params: tree.Tree, old: vit.ViTConfig,
               new: vit.ViTConfig) -> tuple[tree.Tree, list[str]]:
  """Patches and positions for the sizes of `new`, and what was changed."""
  notes = []
  if old.patch_px != new.patch_px:
    kernel = params['patch_embed']['kernel']
    params['patch_embed'] = params['patch_embed'] | {
        'kernel': patches(kernel, new.patch_px)}
    notes.append(
        f'patches of {old.patch_px} resampled to {new.patch_px} pixels')
  if new.position == 'learned':
    grid = new.grid((new.image_px,) * 2)
    side = math.isqrt(len(params['pos_embed']) - 1)
    if grid != (side, side):
      params['pos_embed'] = np.asarray(positions.resize_learned(
          params['pos_embed'], grid, offset=0.0, antialias=side > grid[0]))
      notes.append(f'positions of {side} × {side} patches resampled to '
                   f'{grid[0]} × {grid[1]}')
  return params, notes


def _check(old: reading.Config, new: reading.Config, source: str):
  names = {vit.ViTConfig: 'ViT', convnext.ConvNeXtConfig: 'ConvNeXt'}
  if type(old) is not type(new):
    raise errors.UserError(
        f'{source} is a {names[type(old)]}, and the config trains a '
        f'{names[type(new)]}: use weights of a {names[type(new)]}')
  wrong = [f'model.{key}={getattr(new, key)}, the source has '
           f'{getattr(old, key)}'
           for key in _FIXED[new.FAMILY]
           if getattr(old, key) != getattr(new, key)]
  if wrong:
    raise errors.UserError(
        f'{source} is another architecture: ' + '; '.join(wrong)
        + '; set the config to what the source has')


def patches(kernel: np.ndarray, patch_px: int) -> np.ndarray:
  """[y, x, c, d] for patches of another size, [patch_px, patch_px, c, d].

  The kernel whose products with resized patches are nearest to the old ones
  with the patches themselves; for larger patches they are equal.

  Source: FlexiViT (Beyer et al. 2022), resizing by pseudo-inverse.
  """
  sizes = kernel.shape[0], patch_px
  side = resample.cubic_matrix(*sizes, antialias=sizes[1] < sizes[0])
  inverse = np.linalg.pinv(side.T.astype(np.float64))
  return np.einsum('ai,bj,ijcd->abcd', inverse, inverse,
                   kernel.astype(np.float64)).astype(np.float32)
