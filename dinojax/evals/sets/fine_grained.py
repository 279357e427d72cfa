"""Twelve fine-grained sets, and the score that papers report of each.

Source: the linear evaluation of DINOv2 and DINOv3, which follows SimCLR's.
"""

import re
from urllib import parse

ACCURACY, PER_CLASS, PRECISION = 'top-1', 'mean per class', 'mAP, 11 points'

# Name, data set of TensorFlow Datasets ('': use folders), score.
SETS = {
    'food101': ('food101', ACCURACY),
    'cifar10': ('cifar10', ACCURACY),
    'cifar100': ('cifar100', ACCURACY),
    'sun397': ('sun397', ACCURACY),
    'cars': ('cars196', ACCURACY),
    'aircraft': ('', PER_CLASS),
    'voc2007': ('voc/2007', PRECISION),
    'dtd': ('dtd', ACCURACY),
    'pets': ('oxford_iiit_pet', PER_CLASS),
    'caltech101': ('caltech101', PER_CLASS),
    'flowers102': ('oxford_flowers102', PER_CLASS),
    'cub200': ('caltech_birds2011', ACCURACY)}


def score_of(spec: str) -> str:
  """Name of the score that papers report of a set.

  Args:
    spec: text of a source; its path, or its name in TFDS, tells the set.
  """
  words = set(re.split(r'[/:?]', parse.unquote(spec).lower()))
  for name, (prepared, score) in SETS.items():
    if name in words or prepared and prepared.split('/')[0] in words:
      return score
  return ACCURACY
