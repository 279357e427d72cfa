"""A run whose step is a line of arithmetic, everything else as it is."""

import functools
import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np

from dinojax.core import tree
from dinojax.engine import program
from dinojax.engine import trainable
from dinojax.evals import while_training
from dinojax.interop import reading
from dinojax.models import vit
from dinojax.runs import assemble
from dinojax.runs import batches as batches_lib
from dinojax.runs import exports
from dinojax.train import method as method_lib
from dinojax.train import pretraining
from dinojax.train import state as state_lib
from tests.train import tiny

STEPS, EVERY = 4, 2


def config(**changes):
  return tiny.config(
      train__total_steps=STEPS, train__epoch_steps=2,
      train__check_memory=False, **changes) | {
          'checkpoint': {'every_steps': EVERY}, 'log': {
              'every_steps': 1, 'tensorboard': False}}


def fresh(mesh):
  """A state of a few numbers."""
  place = jax.NamedSharding(mesh, jax.P())
  put = lambda x: jax.device_put(x, place)
  weights = lambda: {'backbone': {'w': put(jnp.linspace(0, 1, 16))}}
  count = lambda: put(jnp.int32(0))
  return {'step': count(), 'key': put(jax.random.key(0)),
          'counters': {'bad_images': count()}, 'students': {'student': {
              'student': weights(), 'ema': weights(), 'opt': {'mu': weights()},
              'begun': count(), 'counters': {
                  'skipped_steps': count(), 'nonfinite_in_row': count()}}}}


def step(state, batch, nan_from=10**9):
  """Draws the weights to a mean of the batch; not finite from a step on."""
  number = int(state['step']) + 1
  student = state['students']['student']
  w = 0.9 * student['student']['backbone']['w'] + 0.1 * float(batch.mean())
  bad = number >= nan_from
  counters = student['counters'] | {'nonfinite_in_row': (
      student['counters']['nonfinite_in_row'] + 1) * bad}
  if not bad:
    student = student | {'student': {'backbone': {'w': w}}}
  metrics = {'loss': jnp.float32(np.nan) if bad else w.mean(),
             'nonfinite_in_row': counters['nonfinite_in_row'],
             'first_bad_leaf': jnp.int32(0), 'bad_images': jnp.int32(0)}
  return state | {'step': state['step'] + 1, 'students': {
      'student': student | {'counters': counters}}}, metrics


def batches(*args, **_):
  number = args[3]
  while True:
    yield {'row': np.full(8, number, np.float32), 'problems': []}
    number += 1


_RECIPES, _BUILD = {}, method_lib.build


def _build(settings, mesh, epoch_steps, teacher=None):
  """Builds a recipe once: it takes most of a start."""
  key = str((settings, epoch_steps))
  if key not in _RECIPES:
    _RECIPES[key] = _BUILD(settings, mesh, epoch_steps, teacher)
  return _RECIPES[key]


@functools.cache
def weights():
  """A small backbone, which is exported in place of the line."""
  config = vit.ViTConfig(embed_dim=8, depth=1, num_heads=1, patch_px=4,
                         image_px=8, num_channels=3)
  params = tree.map_with_name(
      lambda name, x: np.full(x.shape, 0.5, np.float32), reading.shapes(config))
  return reading.Weights(config, params, {}, 'dinojax', {}, (0.5,) * 3,
                         (0.5,) * 3)


def install(monkeypatch, nan_from=10**9):
  """Puts the fake in place of what compiles."""
  programs = program.Programs(
      prepare=lambda batch, number: batch['row'],
      step=lambda state, rows: step(state, np.asarray(rows), nan_from))

  class All(dict):
    def __missing__(self, key):
      return programs

  monkeypatch.setattr(method_lib, 'build', _build)
  monkeypatch.setattr(program, 'compile_all', lambda *_, **__: All())
  monkeypatch.setattr(
      pretraining.Pretraining, 'create', lambda self, _: fresh(self.mesh))
  monkeypatch.setattr(
      state_lib, 'abstract', lambda method, mesh, **_: trainable.shapes_of(
          fresh(mesh)))
  monkeypatch.setattr(batches_lib, 'make', batches)
  monkeypatch.setattr(exports, 'read', lambda *_: {'student': weights()})
  monkeypatch.setattr(while_training, 'make', lambda *_: (
      lambda step, emas, stop: {'knn/trained': 50.0 + step}))


def train(folder, **changes):
  """A start of the run."""
  return assemble.train(config(**changes), str(folder))


def left(folder: pathlib.Path):
  """What a run leaves that must not depend on kills: log and weights."""
  from orbax.checkpoint import v1 as ocp
  with ocp.training.Checkpointer(folder / 'checkpoints') as c:
    last = c.latest.step
    weights = np.asarray(
        c.load_checkpointables(last)['student.student']['backbone']['w'])
  rows = [json.loads(line) for line in
          (folder / 'metrics.jsonl').read_text().splitlines()]
  rows = [{k: v for k, v in row.items() if not k.startswith(('time', 'mem'))}
          for row in rows]
  return last, weights.tobytes(), rows
