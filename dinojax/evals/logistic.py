"""Logistic regression on frozen features: many strengths at once, on a device.

The objective is scikit-learn's, ½‖W‖² + C · Σ log-loss with free biases. All
values of C are solved side by side, see `lbfgs`. What makes that fast and safe:
features are centred and turned to their principal axes, which changes no answer
(the penalty does not see turns) and makes the Hessian nearly diagonal.
"""

from collections.abc import Mapping, Sequence
import dataclasses

import numpy as np

from dinojax.core import errors
from dinojax.evals import lbfgs

# Ten to powers, in float32 as the references have them.
STRENGTHS = tuple(float(c) for c in 10 ** np.linspace(
    -6, 5, 45).astype(np.float32))
_BYTES = 2**29  # of scores of the problems that are solved side by side
_MORE = 1.2  # of the free memory: estimates are no nearer


@dataclasses.dataclass(frozen=True)
class Solution:
  """Classifiers of several strengths.

  Attributes:
    weight: [s, k, d] float32; k is 1 for two classes.
    bias: [s, k].
    classes: numbers of the classes, or columns, that k stands for.
    num_classes: classes in all, of which some may be absent in training.
    several: images have several labels, and each class is a yes or no.
    constant: columns that are always the same in training, with their value.
    loss: [s] mean log-loss in training.
    num_steps: [s] steps that were taken.
    converged: [s] whether the answer is as exact as float32 can tell.
  """

  weight: np.ndarray
  bias: np.ndarray
  classes: np.ndarray
  num_classes: int
  several: bool
  constant: Mapping[int, float]
  loss: np.ndarray
  num_steps: np.ndarray
  converged: np.ndarray

  def probabilities(self, features: np.ndarray, at: int = 0) -> np.ndarray:
    """[r, num_classes] float32 of the classifier with number `at`."""
    scores = features.astype(np.float64) @ self.weight[at].T + self.bias[at]
    out = np.zeros((len(features), self.num_classes))
    for column, value in self.constant.items():
      out[:, column] = value
    if self.several:
      out[:, self.classes] = _sigmoid(scores)
    elif len(self.classes) == 2:
      out[:, self.classes[1]] = _sigmoid(scores[:, 0])
      out[:, self.classes[0]] = _sigmoid(-scores[:, 0])
    else:
      weights = np.exp(scores - scores.max(1, keepdims=True))
      out[:, self.classes] = weights / weights.sum(1, keepdims=True)
    return out.astype(np.float32)

  def alone(self, at: int) -> 'Solution':
    """The classifier with number `at`."""
    some = slice(at, at + 1)
    return dataclasses.replace(self, **{
        name: getattr(self, name)[some] for name in (
            'weight', 'bias', 'loss', 'num_steps', 'converged')})


def check_memory(count: int, width: int, num_classes: int,
                 free_gib: float) -> None:
  """Refuses a problem that does not fit a device, before features are read.

  Args:
    count: training images.
    width: width of their features.
    num_classes: classes.
    free_gib: free memory of the device.

  Raises:
    UserError: it takes more than a fifth above that.
  """
  scores = 4 * count * num_classes
  together = _together(scores, len(STRENGTHS))
  weights = 4 * num_classes * (width + 1)
  # Scores, chances, their change along a direction, and a trial of it.
  need = (4 * count * (width + 1) + scores + together * (
      4 * scores + (2 * lbfgs.HISTORY + 8) * weights)) / 2**30
  if need > _MORE * free_gib:
    raise errors.UserError(
        f'logistic regression on {count:,} images of {num_classes:,} classes '
        f'takes about {need:.3g} GiB of a device, which has {free_gib:.3g} '
        'free: use the linear probe, which learns in batches, or a part of the '
        'images, such as held_out:SOURCE')


def _together(scores: int, most: int) -> int:
  """Problems that are solved side by side, of so many bytes of scores."""
  return max(1, min(most, _BYTES // max(scores, 1)))


def fit(features: np.ndarray, labels: np.ndarray, num_classes: int,
        strengths: Sequence[float] = STRENGTHS, *, max_steps: int = 1000,
        tolerance: float = 1e-10) -> Solution:
  """Solves for all strengths.

  Args:
    features: [r, d], not normalised.
    labels: [r] classes, or [r, num_classes] of zeros and ones, where every
      class is a problem of its own (one against the rest).
    num_classes: classes, of which training may lack some.
    strengths: values of C.
    max_steps: steps of L-BFGS.
    tolerance: the mean objective may be this much above its minimum, by the
      estimate of the scaled gradient, in nats.

  Raises:
    UserError: all images are of one class, or a number that is not finite.

  Source: LogisticRegression (lbfgs) of scikit-learn, alone for classes and in
    OneVsRestClassifier for several labels; DINOv2 and DINOv3 call these.
  Differs: float32; stops where the objective is within `tolerance`.
  """
  features = np.asarray(features, np.float32)
  if not np.isfinite(features).all():
    raise errors.UserError(
        'features hold numbers that are not finite: check the model')
  target, classes, constant = _targets(np.asarray(labels), num_classes)
  several = np.ndim(labels) == 2
  mean = features.mean(0, dtype=np.float64)
  centred = features.astype(np.float64) - mean
  # Turned to the axes; of fewer rows than columns the rest is all zeros.
  _, axes = np.linalg.eigh(centred.T @ centred)
  axes = axes[:, ::-1][:, :min(len(features), features.shape[1])]
  turned = (centred @ axes).astype(np.float32)
  together = _together(4 * target.size, len(strengths))
  parts = [lbfgs.solve(turned, target, np.asarray(
      strengths[start:start + together], np.float32), several, max_steps,
                       tolerance)
           for start in range(0, len(strengths), together)]
  weight, bias, loss, steps, done = (
      np.concatenate(part) for part in zip(*parts, strict=True))
  weight = weight.astype(np.float64) @ axes.T
  bias = bias - weight @ mean
  if not several and len(target) > 1:  # any constant gives the same chances
    bias = bias - bias.mean(1, keepdims=True)
  return Solution(weight.astype(np.float32), bias.astype(np.float32), classes,
                  num_classes, several, constant, loss, steps, done)


def _sigmoid(x: np.ndarray) -> np.ndarray:
  return np.exp(-np.logaddexp(0.0, -x))


def _targets(labels: np.ndarray, num_classes: int
             ) -> tuple[np.ndarray, np.ndarray, dict[int, float]]:
  """[k, r] zeros and ones, what k stands for, and columns that never change.

  Raises:
    UserError: nothing to tell apart.
  """
  if labels.ndim == 2:
    share = labels.mean(0)
    constant = {int(i): float(share[i])
                for i in np.flatnonzero((share == 0) | (share == 1))}
    classes = np.setdiff1d(np.arange(num_classes), list(constant))
    target = labels.T[classes]
  else:
    classes, constant = np.unique(labels), {}
    if len(classes) == 2:  # a single problem of yes and no
      target = labels[None] == classes[1]
    else:
      target = labels[None] == classes[:, None]
  if len(classes) < 2 and not (labels.ndim == 2 and len(classes)):
    raise errors.UserError(
        f'all {len(labels)} training images are of one class: a classifier '
        'needs two or more')
  return target.astype(np.float32), classes, constant
