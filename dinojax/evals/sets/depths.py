"""Sets of depth by their names: which layout a spec asks for.

`depth:DIR` is the plain layout, see sets.dense; `predicted:DIR` is what a head
made, see sets.predicted; the others are official ones.
"""

from collections.abc import Callable, Mapping

from dinojax.evals.sets import dense
from dinojax.evals.sets import depth_maps
from dinojax.evals.sets import predicted
from dinojax.evals.sets import schemes

OPENERS: Mapping[str, Callable[[str, str], dense.Set]] = {
    'depth': lambda spec, split: dense.plain_depth(spec),
    'predicted': lambda spec, split: predicted.Predicted(spec),
    'nyu': depth_maps.nyu, 'kitti': depth_maps.kitti,
    'sunrgbd': depth_maps.sunrgbd}


def train(spec: str) -> dense.Set:
  """The set of a spec; of an official one, its training part."""
  return schemes.opened(spec, 'train', OPENERS, 'depth')


def test(spec: str) -> dense.Set:
  """The set of a spec; of an official one, its test part."""
  return schemes.opened(spec, 'test', OPENERS, 'depth')
