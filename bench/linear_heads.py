"""Many linear heads trained side by side against heads trained alone.

  python -m bench.linear_heads [--parts=cached,images] [--repeats=7]

cached: a step of 52 heads on given features (batch 128, d 384) against 52
steps of a head. images: a step of the 52 heads of DINOv2's probe from images
(ViT-S/14, 224 pixels, batch 64) against a step of a single head. 10 and 1,000
classes. The sides take turns; the ratio is that of the least times. Prints
one JSON line; ratio < 1: side by side is cheaper.
"""

import argparse
import json
import time

import jax
import numpy as np

from dinojax.evals import linear
from dinojax.features import backbone as backbone_lib
from dinojax.interop import reading
from dinojax.models import vit
from dinojax.models import zoo
from dinojax.parallel import mesh as mesh_lib
from dinojax.probes import fit as fit_lib
from dinojax.probes.tasks import classify

HEADS, WIDTH, CACHED_ROWS, IMAGE_ROWS, IMAGE_PX = 52, 384, 128, 64, 224
CLASSES = (10, 1000)


class Side:
  """A training of heads, a step at a time."""

  def __init__(self, model, task, batch, rates, steps: int, at_once):
    """Compiles and runs the first step.

    Args:
      model: the backbone.
      task: the task of the heads.
      batch: arrays of the host.
      rates: learning rate of each head.
      steps: steps that are timed as one.
      at_once: see Fit.
    """
    shapes = jax.tree.map(
        lambda x: fit_lib.rows(model.mesh, x.dtype, *x.shape), batch)
    self._fit = fit_lib.Fit(
        task, model, shapes, sweep=fit_lib.Sweep(rates),
        rule=linear.optimizer('sgd'),
        schedule=linear.schedule('cosine_annealing', 10**6),
        heads_at_once=at_once)
    self._mesh, self._steps = model.mesh, steps
    with mesh_lib.activate(model.mesh):
      self._batch = jax.device_put(batch, jax.tree.map(
          lambda x: x.sharding, shapes))
      self._state = self._fit.enter(
          self._fit.create(jax.random.key(0)), 'heads')
      self._step = jax.jit(
          self._whole, donate_argnums=0,
          compiler_options=mesh_lib.compiler_options(model.mesh))
    self.seconds()

  def _whole(self, state, batch):
    batch = self._fit.prepare(batch, state['step'], variant='heads')
    return self._fit.step(state, batch, variant='heads')

  def seconds(self) -> float:
    """Time of the steps."""
    with mesh_lib.activate(self._mesh):
      began = time.perf_counter()
      for _ in range(self._steps):
        self._state, metrics = self._step(self._state, self._batch)
      jax.block_until_ready((self._state, metrics))
    loss = float(metrics['loss'])
    if not np.isfinite(loss):
      raise SystemExit(f'the loss is {loss}: nothing to compare')
    return time.perf_counter() - began


def backbone(config) -> backbone_lib.Backbone:
  """Random weights."""
  mesh = mesh_lib.make(devices=mesh_lib.one_device())
  with mesh_lib.activate(mesh):
    params = jax.device_get(
        reading.functional(config, mesh).init(jax.random.key(0)))
  return backbone_lib.Backbone.of(reading.Weights(config, params, {}, 'meta'))


def targets(rng, count: int, num_classes: int) -> dict:
  """Labels, all of which count."""
  return {'target': rng.integers(0, num_classes, count).astype(np.int32),
          'weight': np.ones(count, np.float32), 'bad': np.zeros(count, bool)}


def cached(num_classes: int, at_once) -> dict[str, Side]:
  """52 heads on features of one width, together and alone."""
  rng = np.random.default_rng(0)
  model = backbone(vit.ViTConfig(WIDTH, 1, 6, 14, image_px=28))
  task = classify.Classify(num_classes, (1,), (False,))
  batch = targets(rng, CACHED_ROWS, num_classes) | {
      fit_lib.FEATURES: {'normed/cls/0': rng.normal(
          size=(CACHED_ROWS, WIDTH)).astype(np.float32)}}
  rates = tuple(np.geomspace(1e-5, 1e-1, HEADS).tolist())
  return {'together': Side(model, task, batch, rates, 1, at_once),
          'alone': Side(model, task, batch, rates[:1], HEADS, None)}


def from_images(num_classes: int, at_once) -> dict[str, Side]:
  """The heads of DINOv2's probe, and a single head, from images."""
  rng = np.random.default_rng(0)
  model = backbone(zoo.vit_config('dinov2_vits14', image_px=IMAGE_PX))
  batch = targets(rng, IMAGE_ROWS, num_classes) | {'image': rng.integers(
      0, 256, (IMAGE_ROWS, IMAGE_PX, IMAGE_PX, 3), dtype=np.uint8)}
  rates = linear.LEARNING_RATES
  both = classify.Classify(num_classes, (1, 4), (False, True))
  return {'together': Side(model, both, batch, rates, 1, at_once),
          'alone': Side(model, classify.Classify(num_classes, (1,), (False,)),
                        batch, rates[:1], 1, None)}


PARTS = {'cached': cached, 'images': from_images}


def measure(part: str, num_classes: int, options) -> dict:
  """Times of both sides, in turns."""
  sides = PARTS[part](num_classes, options.at_once)
  times = {name: [] for name in sides}
  for _ in range(options.repeats):
    for name, side in sides.items():
      times[name].append(side.seconds())
  least = {name: min(t) for name, t in times.items()}
  return {'ms': {name: round(1e3 * t, 2) for name, t in least.items()},
          'ratio': round(least['together'] / least['alone'], 3)}


def main():
  """Measures and prints."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('--parts', default='cached,images')
  parser.add_argument('--repeats', type=int, default=7)
  parser.add_argument('--classes', default=','.join(map(str, CLASSES)))
  parser.add_argument('--at_once', type=int, help='heads side by side')
  options = parser.parse_args()
  print(json.dumps({'bench': 'linear_heads', 'heads': HEADS} | {
      part: {num: measure(part, int(num), options)
             for num in options.classes.split(',')}
      for part in options.parts.split(',')}))


if __name__ == '__main__':
  main()
