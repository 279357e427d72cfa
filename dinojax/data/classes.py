"""Labels of two sources compared by the names of their classes.

Every source numbers its own classes, so the same number is another class as
soon as one of them lacks one: names decide wherever two sources meet.
"""

from collections.abc import Sequence
import dataclasses
from typing import Protocol

import numpy as np

from dinojax.core import errors
from dinojax.core import text

UNKNOWN = -1  # no label, or a class that the other side lacks


class Labelled(Protocol):
  """A source of records, or a table of features, with named classes."""

  spec: str
  classes: Sequence[str]


@dataclasses.dataclass(frozen=True)
class Matching:
  """How labels of test images are written with the numbers of training.

  Attributes:
    numbers: [k] for each test class its number in training, or UNKNOWN.
    notes: sentences about classes that only one side has.
  """

  numbers: np.ndarray
  notes: tuple[str, ...]

  def of_test(self, labels: np.ndarray) -> np.ndarray:
    """[r] labels of test images as numbers of training, or UNKNOWN."""
    labels = np.asarray(labels)
    if not len(self.numbers):
      return np.full(labels.shape, UNKNOWN)
    known = (labels >= 0) & (labels < len(self.numbers))
    return np.where(known, self.numbers[np.where(known, labels, 0)], UNKNOWN)


def match(train: Labelled, test: Labelled, *, train_key: str = 'training',
          test_key: str = 'test', otherwise: str = '') -> Matching:
  """Finds the classes of one source in another.

  Args:
    train: source whose class numbers are kept.
    test: source whose images are classified.
    train_key: config key or flag of the first, for messages.
    test_key: config key or flag of the second.
    otherwise: another way out than other sources, for messages.

  Raises:
    UserError: no class in common.
  """
  ours, theirs = list(train.classes), list(test.classes)
  if ours == theirs:  # also where a name stands twice
    return Matching(np.arange(len(ours)), ())
  numbers = {name: i for i, name in reversed(list(enumerate(ours)))}
  training_numbers = np.array(
      [numbers.get(name, UNKNOWN) for name in theirs], int)
  if not (training_numbers != UNKNOWN).any():
    raise errors.UserError(
        f'{train_key}={train.spec} and {test_key}={test.spec} have no class '
        f'in common: {text.listed(ours)} against {text.listed(theirs)}. '
        'Classes are compared by name; choose sources of the same classes'
        + (f', or {otherwise}' if otherwise else ''))
  notes = []
  for key, side, other, end in (
      (train_key, train, test_key, 'they can only be wrong neighbours'),
      (test_key, test, train_key, 'they are left out of the score')):
    alone = _alone(side, theirs if side is train else ours)
    if alone:
      notes.append(f'{key} has {alone} that {other} lacks: {end}')
  return Matching(training_numbers, tuple(notes))


def _alone(side: Labelled, others: Sequence[str]) -> str:
  """'2 classes (cat: 20 images, dog: 3 images)'; '' when there are none."""
  others = set(others)
  counts = getattr(side, 'class_counts', lambda: None)()
  alone = [(name, counts and counts[i]) for i, name in enumerate(side.classes)
           if name not in others]
  if not alone:
    return ''
  named = text.listed([
      name if count is None else f'{name}: {count} images'
      for name, count in alone], 5)
  total = '' if counts is None or len(alone) < 2 else (
      f' with {sum(count for _, count in alone)} images')
  word = 'class' if len(alone) == 1 else 'classes'
  return f'{len(alone)} {word}{total} ({named})'
