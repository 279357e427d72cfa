"""Weighted k-nearest neighbours of the CLS token.

Source: evaluation of DINOv2 and DINOv3: k of 10, 20, 100 and 200, temperature
  0.07.
"""

from collections.abc import Callable, Mapping
import dataclasses
from typing import Any

import numpy as np

from dinojax.core import errors
from dinojax.core import fields
from dinojax.core import text
from dinojax.data import record as record_lib
from dinojax.evals import knn
from dinojax.evals import protocol
from dinojax.features import spec
from dinojax.metrics import classification

TITLE = 'k-nearest neighbours of the CLS token'
COST = 'train and test once'
ROLES = {'train': protocol.Role('train'), 'test': protocol.Role('test')}
_CLS = spec.FeatureSpec()


@dataclasses.dataclass(frozen=True)
class Settings:
  """k-NN accuracy."""

  k: tuple[fields.Positive, ...] = (10, 20, 100, 200)  # Neighbours that vote.
  temperature: fields.Above0 = 0.07  # Divisor of cosines before the softmax.


def check(settings: Settings, config: Any):
  """Every backbone has a CLS token."""
  del settings, config


def passes(settings: Settings, sizes: Mapping[str, int]) -> int:
  """Images that go through the backbone."""
  del settings
  return sizes['train'] + sizes['test']


def cls(outputs: dict) -> dict:
  """The CLS token of the last layer."""
  layer, = outputs['cls']
  return {'cls': layer['cls']}


def run(job: protocol.Job, settings: Settings) -> list[protocol.Measured]:
  """Accuracy for every k.

  Raises:
    UserError: sources without labels or without a class in common, or fewer
      images than neighbours.
  """
  return of_features(job, settings, lambda source: protocol.features(
      job, source, {'cls': _CLS}, cls))


def of_features(job: protocol.Job, settings: Settings,
                extract: Callable[[record_lib.Source], protocol.Rows]
                ) -> list[protocol.Measured]:
  """Accuracy for every k, of any features.

  Args:
    job: the backbone, and the sets.
    settings: the section.
    extract: makes `cls` [r, d], `index` and `label` of a source.

  Raises:
    UserError: see `run`.
  """
  train, = job.sets['train']
  protocol.labelled(train, 'data.train')
  tests = [(test, protocol.matched(
      job, train, protocol.labelled(test, 'data.test')))
           for test in job.sets['test']]
  near = extract(train)
  near = protocol.in_common(near, near['label'], train.spec)
  # Within a run too few images that can be read are no reason to end.
  ks = tuple(settings.k) if job.nested else _within(
      settings, len(near['label']), train.spec, job.say)
  num_classes = len(train.classes)
  out = []
  for test, matching in tests:
    asked = extract(test)
    asked = protocol.in_common(
        asked, matching.of_test(asked['label']), test.spec)
    scores = knn.scores(
        near['cls'], near['label'], asked['cls'], ks=ks,
        mesh=job.model.mesh,
        temperature=settings.temperature, num_classes=num_classes)
    rows = {'index': asked['index'], 'label': asked['label']} | {
        f'top-{top}, k {k}': classification.in_top(
            scores[k], asked['label'], top).astype(float)
        for top in protocol.tops(num_classes) for k in ks}
    out.append(protocol.Measured(
        test.spec, rows, accuracies, classes=train.classes))
  return out


def accuracies(rows: protocol.Rows) -> dict[str, float]:
  """Accuracies of every k, of images and as the mean over classes."""
  out = protocol.means({name: column for name, column in rows.items()
                        if name.startswith('top-')})
  count = np.bincount(rows['label'])
  for name in [name for name in out if name.startswith('top-1,')]:
    right = np.bincount(rows['label'], rows[name])
    out[name.replace('top-1', 'mean per class')] = 100.0 * float(
        np.mean(right[count > 0] / count[count > 0]))
  return out


def _within(settings: Settings, count: int, name: str,
            say: Callable[[str], None]) -> tuple[int, ...]:
  """The numbers of neighbours that there are.

  Raises:
    UserError: none of them.
  """
  ks = tuple(k for k in settings.k if k <= count)
  if not ks:
    raise errors.UserError(
        f'knn.k={settings.k} are more neighbours than the {count} images of '
        f'{name}: set knn.k lower')
  if ks != settings.k:
    left_out = text.listed([str(k) for k in settings.k if k not in ks])
    say(f'knn.k: {left_out} are left out, more than the {count} images of '
        f'{name}')
  return ks
