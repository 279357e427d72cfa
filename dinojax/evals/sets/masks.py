"""Sets of segmentation by their names: which layout a spec asks for.

`masks:DIR` is the plain layout, see sets.dense; the others are official ones.
"""

from collections.abc import Callable, Mapping

from dinojax.evals.sets import ade20k
from dinojax.evals.sets import cityscapes
from dinojax.evals.sets import dense
from dinojax.evals.sets import remote
from dinojax.evals.sets import schemes
from dinojax.evals.sets import voc_masks

OPENERS: Mapping[str, Callable[[str, str], dense.Set]] = {
    'masks': lambda spec, split: dense.plain_masks(spec),
    'ade20k': ade20k.opened, 'voc2007': voc_masks.opened,
    'voc2012': voc_masks.opened, 'cityscapes': cityscapes.opened,
    'loveda': remote.loveda, 'isaid': remote.isaid}


def train(spec: str) -> dense.Set:
  """The set of a spec; of an official one, its training part."""
  return schemes.opened(spec, 'train', OPENERS, 'masks')


def test(spec: str) -> dense.Set:
  """The set of a spec; of an official one, the part that papers report."""
  return schemes.opened(spec, 'val', OPENERS, 'masks')
