"""Training of heads for every pixel, and the sets that they need."""

from collections.abc import Callable, Sequence
import dataclasses
from typing import Any

import jax
import numpy as np

from dinojax.core import errors
from dinojax.core import tree
from dinojax.data import parts
from dinojax.data import sources
from dinojax.evals import dense
from dinojax.evals import protocol
from dinojax.evals import training
from dinojax.evals.sets import dense as sets
from dinojax.features import backbone as backbone_lib
from dinojax.features import spec
from dinojax.probes import fit as fit_lib
from dinojax.probes.tasks import dense as task_lib

_FLAT = 1e-5  # share by which equal predictions differ, of rounding


@dataclasses.dataclass(frozen=True)
class Example:
  """Makes a pair ready to be learnt from; travels to the workers.

  Attributes:
    crops: see data.map_crops.
  """

  crops: Any

  def __call__(self, pair: sets.Pair, rng: np.random.Generator) -> dict:
    return self.crops(*pair.decoded(), rng)


def check(name: str, layers: int, config: Any):
  """Refuses more layers than a backbone has.

  Raises:
    UserError: it has fewer.
  """
  if layers > config.depth:
    raise errors.UserError(
        f'{name} reads {layers} layers, and this model has {config.depth}: '
        f'set {name}.layers={config.depth}, or a recipe of one layer')


def width(model: backbone_lib.Backbone, layers: int | tuple[int, ...]) -> int:
  """Width of some layers together."""
  return sum(spec.FeatureSpec(('map',), layers).widths(model.config))


def split(job: protocol.Job, *, chooses: bool) -> tuple[Any, Any, tuple]:
  """Sets to train on, to choose on (None: there is no choice), and to test.

  Args:
    job: opened sets.
    chooses: True: there are several heads.
  """
  train, = job.sets['train']
  tests = tuple(job.sets['test'])
  if not chooses:
    return train, None, tests
  if job.sets['validation']:
    return train, job.sets['validation'][0], tests
  kept, held_out = (parts.Part(part, train) for part in parts.PARTS)
  return kept, held_out, tests


def sizes_of(given: Sequence[Any], job: protocol.Job) -> dict[str, list]:
  """Sizes of the images of sets by their spec, each looked at once.

  Of the training set values of the first few maps are looked at alone.

  Raises:
    UserError: see dense.sizes.
  """
  train, *others = given
  for index in range(min(len(train), 3)):
    train[index].decoded()
  return {each.spec: dense.sizes(each, job) for each in others
          if each is not None}


def opened_pictures(show: str | None) -> Any:
  """The source of images without maps, if any.

  Raises:
    UserError: nothing there.
  """
  return None if show is None else sources.open_source(show)


def spread(predicted: np.ndarray) -> np.ndarray:
  """[…] greatest less smallest of maps [..., y, x], as a share of the largest.

  The largest by its size, so that it is a share in any unit; 0 of a map of
  zeros.
  """
  size = np.abs(predicted).max(axis=(-2, -1))
  return np.ptp(predicted, axis=(-2, -1)) / np.where(size > 0, size, 1.0)


def tell_flat(job: protocol.Job, name: str, spec: str, spreads: np.ndarray):
  """Says that a head predicts the same for every pixel.

  Args:
    job: has the way to say it.
    name: name of the protocol.
    spec: the test set.
    spreads: [r] `spread` of the prediction of every image.
  """
  if spreads.size and not (spreads > _FLAT).any():
    job.say(
        f'{name} of {spec}: the head predicts the same at every pixel: '
        'its ReLUs have probably died in training; train it with a lower '
        'learning rate, or let the rate rise for more steps')


def train(job: protocol.Job, task: Any, source: Any, crops: Any,
          values: Any, *, sweep: fit_lib.Sweep, rule: Any, schedule: Any,
          clip_norm: float | None = None, factors: Any = None,
          decays: Callable[[tree.Tree], tree.Tree] | None = None) -> dict:
  """Trained heads on the host: params, stats, and which have diverged.

  Args:
    job: the backbone, and where states are kept.
    task: the task that they learn.
    source: pairs.
    crops: see data.map_crops.
    values: batch_size, steps and heads_at_once.
    sweep: rates of the heads.
    rule: the optimizer.
    schedule: see probes.fit.
    clip_norm: norm that gradients of a head are clipped to.
    factors: see probes.fit.
    decays: see finetuning.multipliers.

  Raises:
    Stopped: a signal ended the training, whose step is saved.
  """
  batches = training.from_images(job, source, Example(crops),
                                 values.batch_size)
  at_once = min(values.heads_at_once, sweep.size)
  fit = fit_lib.Fit(
      task, job.model, batches.shapes, sweep=sweep, rule=rule,
      schedule=schedule, clip_norm=clip_norm, factors=factors,
      decays=decays,
      heads_at_once=None if at_once == sweep.size else at_once)
  state = training.train(job, fit, batches, values.steps)
  heads = jax.device_get(state['heads'][task_lib.CHOICE])
  return {'params': heads['params'], 'stats': heads.get('stats', {}),
          'diverged': np.asarray(heads['counters']['in_row']) > 0}
