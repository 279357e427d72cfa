"""Linear heads of DINOv2 and DINOv3, by the names of their tensors.

A head is {'params': …, 'stats': …}, see probes.tasks.dense.
"""

import dataclasses

from dinojax.interop import names


@dataclasses.dataclass(frozen=True)
class LinearNames:
  """Words of a family of files; no norm: the head has none."""

  conv: str
  norm: str | None


# By what a head predicts and who published it.
NAMES = {
    'segmentation_v2': LinearNames('conv_seg', 'bn'),
    'segmentation_v3': LinearNames('conv', 'batchnorm_layer'),
    'depth_v2': LinearNames('conv_depth', None),
    'depth_v3': LinearNames('conv_depth', 'batchnorm_layer')}


def table(words: LinearNames) -> names.Table:
  """Rules for every tensor of a head."""
  out = [names.Rule('params/kernel', (f'{words.conv}.weight',), names.POINT),
         names.Rule('params/bias', (f'{words.conv}.bias',))]
  if words.norm:
    out += names.batch_norm('params', 'stats', words.norm)
  return out
