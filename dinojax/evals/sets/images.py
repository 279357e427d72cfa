"""Sets of labelled images by the scheme of their spec."""

from collections.abc import Callable, Mapping

from dinojax.data import record as record_lib
from dinojax.data import sources
from dinojax.evals.sets import imagenet
from dinojax.evals.sets import imagenet_variants
from dinojax.evals.sets import objectnet

OPENERS: Mapping[str, Callable[[str], record_lib.Source]] = {
    'imagenet': imagenet.validation_or_train,
    'imagenet-real': imagenet.real,
    'imagenet-v2': imagenet_variants.v2,
    'imagenet-a': imagenet_variants.a,
    'imagenet-r': imagenet_variants.r,
    'imagenet-sketch': imagenet_variants.sketch,
    'imagenet-c': imagenet_variants.c,
    'objectnet': objectnet.objectnet}


def open_source(spec: str) -> record_lib.Source:
  """Opens a set of OPENERS, or any source of images.

  Raises:
    UserError: nothing there, or an unknown scheme.
  """
  scheme, _, rest = spec.partition(':')
  if scheme in OPENERS:
    return OPENERS[scheme](rest)
  return sources.open_source(spec)
