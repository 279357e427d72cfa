"""Curated sets: records and other sources, with their shares of training.

  DIR/mixture.json   {"train": [[SOURCE, WEIGHT], …],
                      "homogeneous": [[SOURCE, PROBABILITY], …]}

A source is one that training reads; paths of records begin at DIR.
"""

from collections.abc import Sequence
import os

from dinojax.core import atomic
from dinojax.core import errors
from dinojax.core import paths

MIXTURE = 'mixture.json'
SCHEME = 'curated:'
_RECORDS = 'arrayrecord:'

Shares = Sequence[tuple[str, float]]


def expand(train: Shares, homogeneous: Shares) -> tuple[Shares, Shares]:
  """Mixtures in which `curated:DIR` is replaced by what it holds.

  Args:
    train: sources with weights. The weights of a curated set add up to its
      own.
    homogeneous: sources of whole batches with probabilities; those of curated
      sets come after them.

  Raises:
    UserError: no curated set, or a damaged one.
  """
  mixed, whole = [], list(homogeneous)
  for spec, weight in train:
    if not spec.startswith(SCHEME):
      mixed.append((spec, weight))
      continue
    content = _read(spec)
    total = sum(share for _, share in content['train'])
    mixed += [(name, weight * share / total)
              for name, share in content['train']]
    whole += content['homogeneous']
  return tuple(mixed), tuple(whole)


def _read(spec: str) -> dict[str, list[tuple[str, float]]]:
  """Sources of a curated set, with whole paths."""
  folder = paths.expand(spec.removeprefix(SCHEME))
  path = os.path.join(folder, MIXTURE)
  if not os.path.exists(path):
    raise errors.UserError(
        f'{spec} has no {MIXTURE}: name the --workdir of a finished `dinojax '
        'curate`')
  fix = 'end `dinojax curate` again'
  content = atomic.read_json(path, fix)
  try:
    parts = {key: [(str(name), float(share)) for name, share in content[key]]
             for key in ('train', 'homogeneous')}
  except (KeyError, TypeError, ValueError) as error:
    raise errors.UserError(
        f'{path} is not a list of sources and shares ({error}): {fix}'
    ) from error
  if not sum(share for _, share in parts['train']) > 0:
    raise errors.UserError(f'{path} has nothing to train on: {fix}')
  return {key: [(_whole(name, folder), share) for name, share in pairs]
          for key, pairs in parts.items()}


def _whole(name: str, folder: str) -> str:
  if not name.startswith(_RECORDS):
    return name
  return _RECORDS + os.path.join(folder, name.removeprefix(_RECORDS))
