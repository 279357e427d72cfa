"""Sets of depth by their names: which layout a spec asks for.

`depth:DIR` is the plain layout, see sets.dense; the others are official ones.
"""

from collections.abc import Callable, Mapping
import os

from dinojax.core import errors
from dinojax.core import paths
from dinojax.evals.sets import dense
from dinojax.evals.sets import depth_maps

OPENERS: Mapping[str, Callable[[str, str], dense.Set]] = {
    'depth': lambda spec, split: dense.plain_depth(spec),
    'nyu': depth_maps.nyu, 'kitti': depth_maps.kitti,
    'sunrgbd': depth_maps.sunrgbd}


def train(spec: str) -> dense.Set:
  """The set of a spec; of an official one, its training part."""
  return opened(spec, 'train')


def test(spec: str) -> dense.Set:
  """The set of a spec; of an official one, its test part."""
  return opened(spec, 'test')


def opened(spec: str, split: str) -> dense.Set:
  """The set of a spec.

  Args:
    spec: 'SCHEME:DIR', '?split=' may follow for an official layout; or DIR,
      which is 'depth:DIR'.
    split: part of an official layout that is read if the spec names none.

  Raises:
    UserError: no such scheme, or files that are missing.
  """
  scheme, colon, _ = spec.partition(':')
  if scheme in OPENERS and colon:
    return OPENERS[scheme](spec, split)
  if os.path.isdir(paths.expand(spec.partition('?')[0])):
    return dense.plain_depth(f'depth:{spec}')
  raise errors.UserError(
      f'{spec!r} is no set of depths, and no folder of that name is here: use '
      f'one of {", ".join(f"{name}:DIR" for name in OPENERS)}')
