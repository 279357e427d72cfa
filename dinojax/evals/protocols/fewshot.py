"""Logistic regression on a few images of each class, several times.

Source: few-shot evaluation of DINOv2 and DINOv3: mean over tries.
Differs: without validation images, a tenth of the training images chooses the
  strength and is not drawn from.
"""

import dataclasses
from typing import Any

import numpy as np

from dinojax.core import errors
from dinojax.core import fields
from dinojax.data import few_shot
from dinojax.evals import protocol
from dinojax.evals import selection
from dinojax.evals.protocols import logistic
from dinojax.metrics import classification

TITLE = 'logistic regression on a few images of each class'
COST = 'train, validation and test once'
ROLES = logistic.ROLES
check, passes = logistic.check, logistic.passes


@dataclasses.dataclass(frozen=True)
class Settings(logistic.Settings):
  """Few-shot classification."""

  # Images of each class; below 1: the share of every class.
  shots: tuple[fields.Above0, ...] = (1.0, 5.0, 10.0)
  tries: fields.Positive = 5  # Random subsets for each.


def run(job: protocol.Job, settings: Settings) -> list[protocol.Measured]:
  """Accuracy of every number of shots, and its deviation over tries.

  Raises:
    UserError: see logistic; or classes with fewer images than shots.
  """
  train, = job.sets['train']
  tests = [protocol.labelled(test, 'data.test') for test in job.sets['test']]
  images, validation = logistic.split(job, train)
  _enough(settings, images.labels, train)
  asked = [logistic.extract(job, train, test) for test in tests]
  rows: list[protocol.Rows] = [{'index': index} for index, _ in asked]
  for shots in settings.shots:
    for number in range(settings.tries):
      chosen = few_shot.per_class(images.labels, shots, number)
      sweep = selection.choose(
          images.rows(chosen), validation, len(train.classes),
          strengths=settings.strengths(), max_steps=settings.max_steps,
          refit=False)
      for columns, (_, test) in zip(rows, asked, strict=True):
        columns[f'{_name(shots)}, try {number + 1}'] = classification.in_top(
            sweep.final.probabilities(test.features), test.labels,
            1).astype(float)
  return [protocol.Measured(
      test.spec, columns, Scores(settings.shots, settings.tries),
      {'tries': settings.tries}) for test, columns in zip(
          tests, rows, strict=True)]


@dataclasses.dataclass(frozen=True)
class Scores:
  """Scores of rows: the mean and the deviation over tries, in per cent."""

  shots: tuple[float, ...]
  tries: int

  def __call__(self, rows: protocol.Rows) -> dict[str, float]:
    out = {}
    for shots in self.shots:
      each = [100.0 * rows[f'{_name(shots)}, try {number + 1}'].mean()
              for number in range(self.tries)]
      out[f'mean top-1 of tries, {_name(shots)}'] = float(np.mean(each))
      if self.tries > 1:
        out[f'deviation of tries, {_name(shots)}'] = float(np.std(each))
    return out


def _name(shots: float) -> str:
  """'5 a class', or '1 % of a class'."""
  return (f'{int(shots)} a class' if shots >= 1
          else f'{100 * shots:g} % of a class')


def _enough(settings: Settings, labels: np.ndarray, train: Any):
  """Refuses more shots than every class has.

  Raises:
    UserError: a class has fewer.
  """
  counts = np.bincount(labels, minlength=len(train.classes))
  least = int(counts[counts > 0].min())
  most = max(settings.shots)
  if most > least:
    name = train.classes[int(np.flatnonzero(counts == least)[0])]
    raise errors.UserError(
        f'fewshot.shots={most:g}, and class {name} of {train.spec} has '
        f'{least} images to draw from: set fewshot.shots to {least} or fewer, '
        'or below 1, a share of every class')
