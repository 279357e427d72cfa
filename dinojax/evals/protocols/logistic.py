"""Logistic regression on the CLS token, of 45 strengths of its penalty.

The strength is chosen on validation images, or on a random tenth of the
training images; the classifier is then fitted to both together.

Source: logistic regression of DINOv2 and DINOv3 on fine-grained sets.
Differs: float32 on a device, where they are scikit-learn and cuML.
"""

from collections.abc import Mapping
import dataclasses
from typing import Any, Literal

import jax
import numpy as np

from dinojax.core import fields
from dinojax.data import record as record_lib
from dinojax.evals import logistic
from dinojax.evals import protocol
from dinojax.evals import selection
from dinojax.evals.protocols import knn
from dinojax.evals.sets import fine_grained
from dinojax.features import spec
from dinojax.metrics import classification
from dinojax.parallel import hardware

TITLE = 'logistic regression on the CLS token'
COST = 'train, validation and test once'
ROLES = {'train': protocol.Role('train'),
         'validation': protocol.Role('validation', needed=False),
         'test': protocol.Role('test')}
_CLS = spec.FeatureSpec()


@dataclasses.dataclass(frozen=True)
class Settings:
  """Logistic regression."""

  # Least and greatest power of ten of C, the inverse of the penalty.
  powers: tuple[float, float] = (-6.0, 5.0)
  num_strengths: fields.Positive = 45  # Values of C between them.
  max_steps: fields.Positive = 1000  # Steps of L-BFGS.
  # Score that the result names as the one of papers; by_set: by the name of
  # the set, as docs/evaluate.md lists them.
  metric: Literal['by_set', 'top-1', 'mean per class'] = 'by_set'

  def strengths(self) -> tuple[float, ...]:
    """The values of C, float32 powers of ten as the references have them."""
    powers = np.linspace(*self.powers, self.num_strengths)
    return tuple(float(c) for c in (10 ** powers).astype(np.float32))


def check(settings: Settings, config: Any):
  """Every backbone has a CLS token."""
  del settings, config


def passes(settings: Settings, sizes: Mapping[str, int]) -> int:
  """Images that go through the backbone."""
  del settings
  return sum(sizes.values())


def run(job: protocol.Job, settings: Settings) -> list[protocol.Measured]:
  """Accuracies of the classifier that is best on validation images.

  Raises:
    UserError: sources without labels or without a class in common, training
      images of one class only, or too many of them for the memory.
  """
  train, = job.sets['train']
  logistic.check_memory(
      len(train), sum(_CLS.widths(job.model.config)), len(train.classes),
      hardware.available_gib(jax.local_devices()[0]))
  tests = [protocol.labelled(test, 'data.test') for test in job.sets['test']]
  images, validation = split(job, train)
  sweep = selection.choose(
      images, validation, len(train.classes), strengths=settings.strengths(),
      max_steps=settings.max_steps)
  facts = sweep.facts(settings.strengths())
  return [measured(job, train, test, sweep, facts | {
      'metric': fine_grained.score_of(test.spec)
                if settings.metric == 'by_set' else settings.metric})
          for test in tests]


def split(job: protocol.Job, train: record_lib.Source
          ) -> tuple[selection.Labelled, selection.Labelled]:
  """Images that are fitted, and images that choose.

  Raises:
    UserError: no labels, or too few images to hold some out.
  """
  protocol.labelled(train, 'data.train')
  images = extract(job, train, train)[1]
  if not job.sets['validation']:
    return selection.held_out(images)
  validation, = job.sets['validation']
  return images, extract(
      job, train, protocol.labelled(validation, 'data.validation'))[1]


def extract(job: protocol.Job, train: record_lib.Source,
            source: record_lib.Source
            ) -> tuple[np.ndarray, selection.Labelled]:
  """Numbers of the images with a class of training, and their CLS tokens."""
  matching = None if source is train else protocol.matched(
      job, train, source)
  rows = protocol.features(job, source, {'cls': _CLS}, knn.cls)
  labels = matching.of_test(rows['label']) if matching else rows['label']
  rows = protocol.in_common(rows, labels, source.spec)
  return rows['index'], selection.Labelled(rows['cls'], rows['label'])


def measured(job: protocol.Job, train: record_lib.Source,
             test: record_lib.Source, sweep: selection.Sweep,
             facts: Mapping[str, Any]) -> protocol.Measured:
  """Accuracies of a classifier on a test set."""
  index, images = extract(job, train, test)
  chance = sweep.final.probabilities(images.features)
  return protocol.classified(
      test, index, classification.best(chance, 5), images.labels,
      train.classes, facts)
