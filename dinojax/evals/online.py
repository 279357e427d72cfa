"""k-NN of the EMA teacher while it trains, beside two baselines.

Raw pixels and the untrained network say what of the number was learned.
"""

from collections.abc import Callable
import logging

from etils import epath
import jax
import numpy as np

from dinojax.core import errors
from dinojax.data import classes
from dinojax.data import record as record_lib
from dinojax.data import sources
from dinojax.evals import baselines as baselines_lib
from dinojax.evals import knn
from dinojax.features import backbone as backbone_lib
from dinojax.features import pixels
from dinojax.features import preprocessing
from dinojax.features import spec
from dinojax.features import stream
from dinojax.parallel import processes
from dinojax.parallel import sharding
from dinojax.train import method as method_lib
from dinojax.train import sections
from dinojax.train import state as state_lib

# What is measured, and how it is called where people read it.
NAMES = {'knn/trained': 'trained', 'knn/start': 'given weights',
         'knn/untrained': 'untrained', 'knn/raw_pixels': 'raw pixels'}
_CLS = spec.FeatureSpec()


def make(method: method_lib.Method, mesh: jax.sharding.Mesh,
         given: Callable[[str, dict], dict | None] = lambda name, fresh: None,
         folder: epath.Path | None = None
         ) -> Callable[..., dict[str, float]] | None:
  """The evaluator of a run, or None without labelled validation images.

  Args:
    method: networks and settings of the run.
    mesh: the devices.
    given: puts the weights that a student starts from into its fresh
      parameters; None where it starts at random.
    folder: workdir, which keeps baselines over restarts; None: not kept.

  Returns:
    (step, EMA by student) to knn/trained, knn/untrained, knn/raw_pixels and
    knn/start (of given weights) in per cent, NAME/knn/… of several students;
    see `guard` for its error.

  Raises:
    UserError: a source without labels.
  """
  plan, data = method.settings.knn, method.settings.data
  if not (plan.validation or data.validation):
    return None
  train = _labelled(plan.train or data.mixture[0][0], 'knn.train')
  test = _labelled(plan.validation or data.validation, 'knn.validation')
  matching = classes.match(
      train, test, train_key='knn.train', test_key='knn.validation')
  for note in matching.notes if processes.is_first() else ():
    logging.warning('%s', note)
  students = {
      name: _Student(student_method, mesh, train, test, matching,
                     lambda fresh, name=name: given(name, fresh), name)
      for name, student_method in method.each.items()}

  kept = baselines_lib.Baselines(folder, (train, test))
  for name, student in students.items():
    student.baselines |= kept.known.get(name, {})

  def evaluate(step: int, emas: dict[str, dict],
               stop: Callable[[], bool]) -> dict[str, float]:
    del stop  # it ends soon
    scores = {key if name == sections.ALONE else f'{name}/{key}': value
              for name, student in students.items()
              for key, value in student.evaluate(step, emas[name]).items()}
    kept.keep({name: dict(student.baselines)
               for name, student in students.items()})
    return scores

  return evaluate


class _Student:
  """k-NN of one student, and what it is compared with."""

  def __init__(self, method: method_lib.Method, mesh: jax.sharding.Mesh,
               train: record_lib.Source, test: record_lib.Source,
               matching: classes.Matching,
               given: Callable[[dict], dict | None], name: str):
    self._name, self._given = name, given
    self._method, self._mesh = method, mesh
    self._train, self._test, self._matching = train, test, matching
    self.baselines: dict[str, float] = {}

  def evaluate(self, step: int, ema: dict) -> dict[str, float]:
    """Scores of the EMA, and of its baselines."""
    pair, baselines = self._measure(ema), self.baselines
    if not baselines:
      fresh = untrained(self._method, self._mesh, self._name)
      baselines['knn/raw_pixels'] = self._score('pixels', pair)
      baselines['knn/untrained'] = self._score('cls', self._measure(fresh))
      start = self._given(fresh)
      if start is not None:
        baselines['knn/start'] = self._score('cls', self._measure(start))
    scores = {'knn/trained': self._score('cls', pair), **baselines}
    guard(step, scores, self._method.settings.init.max_knn_drop)
    return scores

  def _measure(self, params: dict) -> tuple:
    plan = self._method.settings.knn
    return (self._extract(params, self._train, plan.max_train_images),
            self._extract(params, self._test, plan.max_validation_images))

  def _extract(self, params: dict, source: record_lib.Source,
               limit: int) -> dict[str, np.ndarray]:
    """cls [r, d] float32 and label [r] of readable images.

    Until the baselines are known also pixels [r, e].
    """
    s = self._method.settings
    # It compiles nothing again: there is one program for a configuration.
    model = backbone_lib.Backbone(
        self._method.student.config.backbone, params['backbone'], self._mesh,
        mean=s.augment.mean, std=s.augment.std)
    batches = stream.read(
        model, {'cls': _CLS}, source,
        preprocessing.Preprocessing(s.knn.resize_px, s.knn.crop_px),
        stream.Reading(s.knn.batch_size, s.data.num_threads,
                       max_pixels=s.data.max_pixels,
                       value_range=tuple(s.data.value_range)),
        indices=evenly(len(source), limit))

    def columns(batch):
      stream.warn(batch.bad, source)
      layer, = batch.local()['cls']
      small = batch.images[:len(batch.rows)]
      arrays = {'cls': layer['cls']}
      if not self.baselines:
        arrays['pixels'] = pixels.flatten(small, model.mean, model.std)
      return arrays

    return stream.table(self._mesh, batches, columns)

  def _score(self, name: str, pair: tuple) -> float:
    (a, b), plan = pair, self._method.settings.knn
    train, test = a['label'], self._matching.of_test(b['label'])
    near, asked = train != classes.UNKNOWN, test != classes.UNKNOWN
    if not (near.any() and asked.any()):
      raise errors.UserError(
          'none of the images that k-NN reads has a class of both sources: '
          'raise knn.max_train_images and knn.max_validation_images')
    return knn.top1(
        a[name][near], train[near], b[name][asked], test[asked], k=plan.k,
        temperature=plan.temperature)


def guard(step: int, scores: dict[str, float], most: float | None):
  """Ends a run that forgets what it was given.

  Raises:
    UserError: knn/trained is more than `most` points below knn/start.
  """
  trained = scores['knn/trained']
  start = scores.get('knn/start', trained)
  if most is None or trained >= start - most:
    return
  raise errors.UserError(
      f'k-NN has fallen from {start:.2f} to {trained:.2f} at step {step}, by '
      f'more than init.max_knn_drop={most}: training destroys what '
      'init.source knew. Freeze the backbone for longer while new heads learn '
      '(init.freeze_backbone_steps), or lower schedules.lr.peak; checkpoints '
      'until here are kept')


def untrained(method: method_lib.Method, mesh: jax.sharding.Mesh,
              name: str = sections.ALONE) -> dict:
  """The network as it was before the first step."""
  shardings = sharding.shardings(method.student.shapes, mesh)
  key = jax.random.key(method.settings.seed)
  return jax.jit(
      lambda key: state_lib.init_student(method, name, key)['student'],
      out_shardings=shardings)(key)


def evenly(count: int, limit: int) -> np.ndarray:
  """At most `limit` indices, evenly over 0..count−1."""
  if count <= limit:
    return np.arange(count)
  return np.linspace(0, count - 1, limit).round().astype(int)


def _labelled(spec: str, key: str) -> record_lib.Source:
  source = sources.open_source(spec)
  if not source.classes:
    raise errors.UserError(
        f'{key}={spec} has no labels: k-NN needs a source with classes '
        '(sub-folders, or the manifest.json beside records), or set '
        'data.validation= to nothing')
  return source
