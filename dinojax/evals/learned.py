"""k-NN while a run trains, beside the same of what was there before.

Raw pixels, the untrained network and given weights say what of the number was
learned.
"""

from collections.abc import Callable, Mapping
import dataclasses
from typing import Any

from etils import epath
import jax
import numpy as np

from dinojax.core import errors
from dinojax.data import classes
from dinojax.data import parts
from dinojax.data import record as record_lib
from dinojax.data import sources
from dinojax.evals import baselines as baselines_lib
from dinojax.evals import protocol
from dinojax.evals.protocols import knn
from dinojax.features import backbone as backbone_lib
from dinojax.features import pixels
from dinojax.features import spec as spec_lib
from dinojax.features import stream
from dinojax.parallel import sharding
from dinojax.train import method as method_lib
from dinojax.train import sections
from dinojax.train import settings as settings_lib
from dinojax.train import state as state_lib

# What is measured, and how it is called where people read it.
NAMES = {'knn/trained': 'trained', 'knn/start': 'given weights',
         'knn/untrained': 'untrained', 'knn/raw_pixels': 'raw pixels'}
KEYS = ('knn.train', 'knn.validation')  # of the images
_WITHOUT = 'leave k-NN out by --config.data.validation='
Given = Callable[[str, dict], dict | None]  # see Neighbours


class Neighbours:
  """k-NN of every student of a run, and what it is compared with."""

  def __init__(self, method: method_lib.Method, given: Given,
               folder: epath.Path | None):
    """Opens the images.

    Args:
      method: networks and settings of the run.
      given: puts the weights that a student starts from into its fresh
        parameters; None where it starts at random.
      folder: workdir, which keeps baselines over restarts; None: not kept.

    Raises:
      UserError: images without labels, or without a class in common.
    """
    plan, data = method.settings.knn, method.settings.data
    train = _labelled(plan.train or data.mixture[0][0], KEYS[0])
    test = _labelled(plan.validation or data.validation, KEYS[1])
    self.notes = classes.match(
        train, test, train_key=KEYS[0], test_key=KEYS[1],
        otherwise=_WITHOUT).notes
    self._sets = {
        'train': (parts.evenly(train, plan.max_train_images),),
        'test': (parts.evenly(test, plan.max_validation_images),)}
    self._method, self._given = method, given
    self._section = knn.Settings(k=(plan.k,), temperature=plan.temperature)
    self._kept = baselines_lib.Baselines(folder, (train, test))
    self._baselines = {name: dict(self._kept.known.get(name, {}))
                       for name in method.each}

  def evaluate(self, step: int, name: str, job: protocol.Job
               ) -> dict[str, float]:
    """Scores of a student in per cent, and of its baselines.

    Args:
      step: steps that are done.
      name: the student.
      job: its EMA, without sets.

    Raises:
      UserError: see `guard`.
    """
    job = dataclasses.replace(job, sets=self._sets)
    scores = {'knn/trained': _top1(knn.run(job, self._section))}
    if not self._baselines[name]:
      self._baselines[name] = self._before(name, job)
    scores |= self._baselines[name]
    guard(step, scores, self._method.settings.init.max_knn_drop)
    return scores

  def keep(self):
    """Writes the baselines into the workdir."""
    self._kept.keep(self._baselines)

  def _before(self, name: str, job: protocol.Job) -> dict[str, float]:
    """Scores of what was there before the first step."""
    fresh = untrained(self._method.each[name], job.model.mesh, name)
    untouched = _with_weights(job, fresh)
    tables: dict[Any, protocol.Rows] = {}

    def of(column):
      def extract(source):
        if source not in tables:
          tables[source] = _extracted(untouched, source)
        return tables[source] | {'cls': tables[source][column]}
      return _top1(knn.of_features(untouched, self._section, extract))

    out = {'knn/raw_pixels': of('pixels'), 'knn/untrained': of('cls')}
    start = self._given(name, fresh)
    if start is not None:
      out['knn/start'] = _top1(knn.run(
          _with_weights(job, start), self._section))
    return out


def make(method: method_lib.Method, given: Given, folder: epath.Path | None
         ) -> Neighbours | None:
  """k-NN of a run, see Neighbours; None without validation images."""
  if not has_images(method.settings):
    return None
  return Neighbours(method, given, folder)


def has_images(settings: settings_lib.Settings) -> bool:
  """Tells whether a run has images with labels to measure on."""
  return bool(settings.knn.validation or settings.data.validation)


def guard(step: int, scores: Mapping[str, float], most: float | None):
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


def _with_weights(job: protocol.Job, params: dict) -> protocol.Job:
  """The job of other weights, which share no features with these."""
  model = job.model
  return dataclasses.replace(
      job, nested=dataclasses.replace(job.nested, features={}),
      # It compiles nothing: there is one program for a configuration.
      model=backbone_lib.Backbone(
          model.config, params['backbone'], model.mesh, mean=model.mean,
          std=model.std))


def _extracted(job: protocol.Job, source: record_lib.Source) -> protocol.Rows:
  """`cls` [r, d] and `pixels` [r, e] float32 of readable images."""
  def columns(batch: stream.Batch) -> protocol.Rows:
    layer, = batch.local()['cls']
    return {'cls': np.asarray(layer['cls'], np.float32),
            'pixels': pixels.flatten(batch.images[:len(batch.rows)],
                                     job.model.mean, job.model.std)}

  return stream.table(job.model.mesh, stream.read(
      job.model, {'cls': spec_lib.FeatureSpec()}, source, job.sizes,
      job.reading), columns)


def _top1(measured: list[protocol.Measured]) -> float:
  """The accuracy of the one k, in per cent."""
  scores = measured[0].scores()
  score, = (value for name, value in scores.items()
            if name.startswith('top-1,'))
  return score


def _labelled(spec: str, key: str) -> record_lib.Source:
  source = sources.open_source(spec)
  if not source.classes:
    raise errors.UserError(
        f'{key}={spec} has no labels: k-NN needs a source with classes '
        f'(sub-folders, or the manifest.json beside records); or {_WITHOUT}')
  return source
