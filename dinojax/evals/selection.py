"""Choice of the strength of logistic regression on validation images.

Source: logistic regression of DINOv2 and DINOv3: the first of equal strengths
  wins, and is fitted again to training and validation images together.
"""

from collections.abc import Sequence
import dataclasses

import numpy as np

from dinojax.core import errors
from dinojax.data import few_shot
from dinojax.evals import logistic

PART = 0.1  # of the training images, where no others validate
_SEED = 0


@dataclasses.dataclass(frozen=True)
class Labelled:
  """Features with what they show.

  Attributes:
    features: [r, d].
    labels: [r] classes, or [r, k] of zeros and ones.
  """

  features: np.ndarray
  labels: np.ndarray

  def __len__(self) -> int:
    return len(self.features)

  def rows(self, index: np.ndarray) -> 'Labelled':
    """Some of them."""
    return Labelled(self.features[index], self.labels[index])


@dataclasses.dataclass(frozen=True)
class Sweep:
  """All strengths, and the classifier that comes of them.

  Attributes:
    candidates: fitted to the training images.
    accuracy: [s] on validation images.
    best: number of the strength that is used.
    final: the classifier, alone.
  """

  candidates: logistic.Solution
  accuracy: np.ndarray
  best: int
  final: logistic.Solution

  def facts(self, strengths: Sequence[float]) -> dict[str, float]:
    """Facts beside the number."""
    return {'C': float(strengths[self.best]),
            'validation': 100.0 * float(self.accuracy[self.best]),
            'converged': bool(self.final.converged[0])}


def choose(train: Labelled, validation: Labelled, num_classes: int, *,
           strengths: Sequence[float] = logistic.STRENGTHS,
           max_steps: int = 1000, refit: bool = True) -> Sweep:
  """Fits all strengths, and takes the one that validates best.

  Args:
    train: images that are fitted.
    validation: images that choose.
    num_classes: classes.
    strengths: values of C.
    max_steps: steps of L-BFGS.
    refit: fits the chosen strength again, to both sets together.

  Raises:
    UserError: see `logistic.fit`; no strength, or no validation image.
  """
  if not len(strengths) or not len(validation):
    raise errors.UserError(
        'no strength C is given, or no image to choose it on: give '
        'data.validation, or more training images')
  candidates = logistic.fit(train.features, train.labels, num_classes,
                            strengths, max_steps=max_steps)
  right = np.array([
      accuracy(candidates.probabilities(validation.features, i),
               validation.labels) for i in range(len(strengths))])
  best = int(right.argmax())
  if refit:
    final = logistic.fit(
        np.concatenate([train.features, validation.features]),
        np.concatenate([train.labels, validation.labels]), num_classes,
        strengths[best:best + 1], max_steps=max_steps)
  else:
    final = candidates.alone(best)
  return Sweep(candidates, right, best, final)


def held_out(images: Labelled) -> tuple[Labelled, Labelled]:
  """Images that train, and a random tenth that validates.

  Raises:
    UserError: every class has a single image.
  """
  if images.labels.ndim == 2:
    held = few_shot.per_label(images.labels, PART, _SEED)
    kept = np.setdiff1d(np.arange(len(images)), held)
  else:
    kept, held = few_shot.split(images.labels, PART, _SEED)
  if not len(held) or not len(kept):
    raise errors.UserError(
        f'{len(images)} training images are too few to hold a tenth of every '
        'class out: give data.validation')
  return images.rows(kept), images.rows(held)


def accuracy(chances: np.ndarray, labels: np.ndarray) -> float:
  """Share of right answers; with several labels, of all yes and no.

  Args:
    chances: [r, k] probabilities.
    labels: [r], or [r, k].
  """
  if labels.ndim == 2:
    return float(((chances > 0.5) == (labels > 0.5)).mean())
  return float((chances.argmax(1) == labels).mean())
