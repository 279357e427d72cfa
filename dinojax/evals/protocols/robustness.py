"""Accuracy on images of other kinds, by the linear probe of the training set.

The classifier is that of `linear`, with its settings: chosen on validation
images, and applied as it is. Sets of fewer classes are answered among these
where their authors do so; images with several right labels count any of them.

Source: robustness evaluation of DINOv2 and DINOv3: ImageNet-V2, ReaL, A, R,
  Sketch, ObjectNet, and C as mean corruption error over that of AlexNet.
"""

import dataclasses
from typing import Any

import numpy as np

from dinojax.core import errors
from dinojax.data import classes
from dinojax.evals import linear_probe
from dinojax.evals import protocol
from dinojax.evals.sets import images
from dinojax.metrics import classification
from dinojax.metrics import corruption

TITLE = 'accuracy of the linear probe on images of other kinds'
COST = 'as linear, and each set once'
_NAMES = f'a source with labels, or one of {", ".join(images.OPENERS)}'
TRAINS = True  # heads
ROLES = {'train': protocol.Role('train', opens=images.open_source),
         'validation': protocol.Role(
             'validation', needed=False, opens=images.open_source),
         'test': protocol.Role(opens=images.open_source, what=_NAMES)}


@dataclasses.dataclass(frozen=True)
class Settings(linear_probe.Settings):
  """Linear probe on images of other kinds."""

  test: tuple[str, ...] = ()  # Sets that are measured, such as imagenet-a:DIR.


check = linear_probe.check
passes = linear_probe.passes


def run(job: protocol.Job, settings: Settings) -> list[protocol.Measured]:
  """Accuracy of one classifier on every set.

  Raises:
    UserError: sources without labels or without a class in common; a set that
      may not be trained on.
    Stopped: a signal ended the training, whose step is saved.
  """
  train, = job.sets['train']
  for source in (train, *job.sets['validation']):
    if getattr(source, 'evaluation_only', False):
      raise errors.UserError(
          f'{source.spec} may not be trained on, by its terms: give another '
          'set as data.train')
  tests = [(test, protocol.matched(
      job, protocol.labelled(train, 'data.train'),
      protocol.labelled(test, 'robustness.test')))
           for test in job.sets['test']]
  classifier = linear_probe.trained(
      job, settings, train, job.sets['validation'])
  return [_measured(classifier, test, matching)
          for test, matching in tests]


def _measured(classifier: linear_probe.Classifier, test: Any,
              matching: classes.Matching) -> protocol.Measured:
  """Rows of a set, by what its authors count."""
  rows = classifier.logits(test)
  index, logits = rows['index'].astype(int), rows['logits']
  facts = dict(classifier.facts) | {'classes': len(test.classes)}
  subset = getattr(test, 'subset', None)
  if subset is not None:
    kept = matching.of_test(np.asarray(subset))
    kept = kept[kept != classes.UNKNOWN]
    hidden = np.ones(logits.shape[1], bool)
    hidden[kept] = False
    logits = np.where(hidden[None], -np.inf, logits)
    facts['answers among'] = len(kept)
  several = getattr(test, 'label_sets', None)
  if several is not None:
    right = matching.of_test(several[index])
    return protocol.Measured(test.spec, {
        f'top-{top}': classification.any_match(logits, right, top)
        for top in protocol.tops(len(classifier.classes))}
                             | {'index': index}, _means, facts)
  labels = matching.of_test(rows['label'])
  known = labels != classes.UNKNOWN
  measured = protocol.classified(
      test, index[known], classification.best(logits[known], 5),
      labels[known], classifier.classes, facts)
  columns = getattr(test, 'columns', None) or {}
  if 'corruption' not in columns:
    return measured
  return dataclasses.replace(
      measured, rows=dict(measured.rows) | {
          name: column[index[known]] for name, column in columns.items()},
      score=_corrupted)


def _means(rows: protocol.Rows) -> dict[str, float]:
  """Shares of images with a right answer, in per cent."""
  return protocol.means({name: column for name, column in rows.items()
                         if name.startswith('top-')})


def _corrupted(rows: protocol.Rows) -> dict[str, float]:
  """Mean corruption error, 100 is AlexNet's, and the accuracy of all."""
  names = list(corruption.ALEXNET)
  accuracy = corruption.accuracies(
      rows['top-1'], rows['corruption'], rows['level'], len(names), 5)
  theirs = np.repeat(np.array(list(corruption.ALEXNET.values()))[:, None] / 100,
                     5, axis=1)
  relative = corruption.relative_errors(accuracy, theirs)
  scores = {'top-1': 100 * float(rows['top-1'].mean())}
  if np.isfinite(relative[:len(corruption.STANDARD)]).any():
    scores['mCE'] = 100 * corruption.mean_error(relative, names)
  return scores
