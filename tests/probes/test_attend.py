"""The attentive probe: what it sees, and that it learns an order in time."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dinojax.engine import optimizer
from dinojax.engine import schedules
from dinojax.features import spec
from dinojax.parallel import mesh as mesh_lib
from dinojax.parallel import processes
from dinojax.probes import fit as fit_lib
from dinojax.probes.tasks import attend
from tests.probes import test_fit

FRAMES, ROWS = 3, 16


def clips(seed):
  """Bright, then dark frames of a colour, or dark, then bright: two classes."""
  rng = np.random.default_rng(seed)
  target = rng.integers(0, 2, ROWS)
  rising = np.linspace(30, 220, FRAMES)
  level = np.where(target[:, None] == 1, rising, rising[::-1])
  image = level[:, :, None, None, None] + rng.normal(
      0, 10, (ROWS, FRAMES, 16, 16, 3))
  return {'image': image.clip(0, 255).astype(np.uint8),
          'target': target.astype(np.int32),
          'weight': np.ones(ROWS, np.float32), 'bad': np.zeros(ROWS, bool)}


def test_frames_are_images_of_their_own():
  model = test_fit.model()
  images = model.normalize(clips(0)['image'])
  wanted = {'f': spec.FeatureSpec(('patches', 'cls'))}
  whole, = model.run(images, wanted)['f']
  assert whole['patches'].shape == (ROWS, FRAMES, 4, 32)
  single, = model.run(images[:, 1], wanted)['f']
  for name, value in single.items():
    np.testing.assert_allclose(whole[name][:, 1], value, rtol=1e-5, atol=1e-5)


def test_parts_attend_as_the_whole(monkeypatch):
  q, k, v = (jax.random.normal(key, (2, 7, 2, 4))
             for key in jax.random.split(jax.random.key(0), 3))
  whole = attend._attend(q, k, v)
  monkeypatch.setattr(attend, '_QUERIES', 3)
  np.testing.assert_allclose(attend._attend(q, k, v), whole, atol=1e-6)


@pytest.mark.slow  # make test has its outputs in the goldens
def test_it_learns_what_only_the_order_tells():
  """Of the frames as a set, both classes are the same."""
  model, steps = test_fit.model(), 60
  rows = functools.partial(fit_lib.rows, model.mesh)
  curve = schedules.cosine(1.0, 0.0, total_steps=steps)
  fit = fit_lib.Fit(
      attend.Attend(2, num_heads=4, depth=2), model, {
          'image': rows(jnp.uint8, ROWS, FRAMES, 16, 16, 3),
          'target': rows(jnp.int32, ROWS), 'weight': rows(jnp.float32, ROWS),
          'bad': rows(jnp.bool_, ROWS)},
      sweep=fit_lib.Sweep((1e-5, 3e-3), (0.1, 0.001)),
      rule=optimizer.adamw(), schedule=lambda step: {'lr': curve(step)},
      heads_at_once=1)
  with mesh_lib.activate(model.mesh):
    state = fit.enter(fit.create(jax.random.key(0)), 'heads')
    prepare = jax.jit(functools.partial(fit.prepare, variant='heads'))
    step = jax.jit(functools.partial(fit.step, variant='heads'))
    for i in range(steps):
      batch = prepare(processes.to_devices(clips(i), model.mesh), np.int32(i))
      state, metrics = step(state, batch)
  assert metrics['loss'] < 0.2
