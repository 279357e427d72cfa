"""Sets of segmentation by their names: which layout a spec asks for.

`masks:DIR` is the plain layout, see sets.dense; the others are official ones.
"""

from collections.abc import Callable, Mapping
import os

from dinojax.core import errors
from dinojax.core import paths
from dinojax.evals.sets import ade20k
from dinojax.evals.sets import cityscapes
from dinojax.evals.sets import dense
from dinojax.evals.sets import remote
from dinojax.evals.sets import voc_masks

OPENERS: Mapping[str, Callable[[str, str], dense.Set]] = {
    'masks': lambda spec, split: dense.plain_masks(spec),
    'ade20k': ade20k.opened, 'voc2007': voc_masks.opened,
    'voc2012': voc_masks.opened, 'cityscapes': cityscapes.opened,
    'loveda': remote.loveda, 'isaid': remote.isaid}


def train(spec: str) -> dense.Set:
  """The set of a spec; of an official one, its training part."""
  return opened(spec, 'train')


def test(spec: str) -> dense.Set:
  """The set of a spec; of an official one, the part that papers report."""
  return opened(spec, 'val')


def opened(spec: str, split: str) -> dense.Set:
  """The set of a spec.

  Args:
    spec: 'SCHEME:DIR', '?split=' may follow for an official layout; or DIR,
      which is 'masks:DIR'.
    split: part of an official layout that is read if the spec names none.

  Raises:
    UserError: no such scheme, or files that are missing.
  """
  scheme, colon, _ = spec.partition(':')
  if scheme in OPENERS and colon:
    return OPENERS[scheme](spec, split)
  if os.path.isdir(paths.expand(spec.partition('?')[0])):
    return dense.plain_masks(f'masks:{spec}')
  raise errors.UserError(
      f'{spec!r} is no set of masks, and no folder of that name is here: use '
      f'one of {", ".join(f"{name}:DIR" for name in OPENERS)}')
