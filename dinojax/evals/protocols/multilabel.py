"""Logistic regression where images have several labels: VOC2007, or a CSV.

Each label is a problem of yes and no, and all share one strength, which is
chosen on validation images, or on a tenth of the training images.

Source: logistic regression of DINOv2 and DINOv3 on VOC2007; the 11-point mean
  average precision of its development kit.
Differs: difficult objects count as absent in training, and are left out of
  their class's score, as the kit says.
"""

from collections.abc import Callable, Mapping
import dataclasses
from typing import Literal

import numpy as np

from dinojax.core import errors
from dinojax.evals import protocol
from dinojax.evals import selection
from dinojax.evals.protocols import knn
from dinojax.evals.protocols import logistic
from dinojax.evals.sets import labels
from dinojax.evals.sets import voc_labels
from dinojax.features import spec
from dinojax.metrics import classification

TITLE = 'logistic regression of several labels an image'
COST = 'train, validation and test once'
OPENERS: Mapping[str, Callable[[str], labels.Several]] = {
    'labels': labels.from_csv, 'voc2007': voc_labels.classification}
_CLS = spec.FeatureSpec()
_RESAMPLES = 200  # each sorts the scores of every label


def open_set(text: str) -> labels.Several:
  """Opens labels:FILE or voc2007:DIR[?split=SPLIT].

  Raises:
    UserError: another scheme; see the readers.
  """
  scheme, _, rest = text.partition(':')
  if scheme not in OPENERS:
    raise errors.UserError(
        f'{text} is no set with several labels: give {_WHAT}')
  return OPENERS[scheme](rest)


_WHAT = ('labels:FILE.csv, with columns image and label, or '
         'voc2007:DIR?split=trainval')
ROLES = {'train': protocol.Role(opens=open_set, what=_WHAT),
         'validation': protocol.Role(needed=False, opens=open_set),
         'test': protocol.Role(opens=open_set, what=_WHAT)}


@dataclasses.dataclass(frozen=True)
class Settings(logistic.Settings):
  """Several labels an image."""

  train: str | None = None  # Set that is fitted.
  validation: str | None = None  # Set that chooses; None: a tenth of train.
  test: tuple[str, ...] = ()  # Sets that are measured on, each alone.
  # Average precision: as the kit of VOC 2007 has it, as the references do, or
  # the area below the curve.
  form: Literal['kit', 'dinov3', 'area'] = 'kit'


check, passes = logistic.check, logistic.passes


def run(job: protocol.Job, settings: Settings) -> list[protocol.Measured]:
  """Mean average precision over labels.

  Raises:
    UserError: sets without a label in common.
  """
  train, = job.sets['train']
  images = _extract(job, train, train)[1]
  present = selection.Labelled(
      images.features, (images.labels == labels.PRESENT).astype(np.int8))
  if job.sets['validation']:
    held = _extract(job, train, job.sets['validation'][0])[1]
    validation = selection.Labelled(
        held.features, (held.labels == labels.PRESENT).astype(np.int8))
  else:
    present, validation = selection.held_out(present)
  sweep = selection.choose(
      present, validation, len(train.classes),
      strengths=settings.strengths(), max_steps=settings.max_steps)
  out = []
  for test in job.sets['test']:
    index, asked = _extract(job, train, test)
    rows = {'index': index, 'target': asked.labels,
            'score': sweep.final.probabilities(asked.features)}
    out.append(protocol.Measured(
        test.spec, rows, Precision(settings.form),
        sweep.facts(settings.strengths()), classes=train.classes,
        resamples=_RESAMPLES))
  return out


@dataclasses.dataclass(frozen=True)
class Precision:
  """Mean over labels of the average precision of rows, in per cent."""

  form: str

  def __call__(self, rows: protocol.Rows) -> dict[str, float]:
    target, score = rows['target'], rows['score']
    each = []
    for k in range(target.shape[1]):
      counts = target[:, k] != labels.LEFT_OUT
      each.append(classification.voc2007_precisions(
          score[counts, k:k + 1], target[counts, k:k + 1] == labels.PRESENT,
          self.form)[0])
    name = 'mAP, area' if self.form == 'area' else 'mAP, 11 points'
    known = np.isfinite(each)
    return {name: 100.0 * float(np.mean(np.array(each)[known]))
            } if known.any() else {}


def _extract(job: protocol.Job, train: labels.Several, source: labels.Several
             ) -> tuple[np.ndarray, selection.Labelled]:
  """Numbers of images, and their CLS tokens with targets of training."""
  if not set(train.classes) & set(source.classes):
    raise errors.UserError(
        f'{source.spec} has no label of {train.spec}: labels are compared by '
        'name')
  rows = protocol.features(job, source, {'cls': _CLS}, knn.cls)
  return rows['index'], selection.Labelled(
      rows['cls'], source.targets_as(train.classes)[rows['index']])
