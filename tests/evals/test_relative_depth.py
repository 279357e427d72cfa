"""Relative depth in the three steps of Depth Anything, on rendered rooms."""

import json

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image
import pytest

from dinojax.core import errors
from dinojax.evals import stored_heads
from dinojax.evals.protocols import depth
from dinojax.evals.sets import depths
from dinojax.interop import store
from dinojax.losses import affine_depth
from dinojax.runs import predictions
from tests.evals import test_dense
from tests.interop import cases

SIDE = 48


def room(seed):
  """An image and its exact depths: boxes with textures on a plane.

  A pinhole at height one looks along the plane; a box hides what is behind.
  """
  rng = np.random.default_rng(seed)
  y, x = np.mgrid[:SIDE, :SIDE] / SIDE - 0.5
  depth_map = np.where(
      y > 0.02, np.minimum(1 / np.maximum(2 * y, 0.05), 10), 10)
  image = 200 - 12 * depth_map[..., None] + 20 * np.sign(np.sin(
      25 * x * depth_map) * np.sin(3 * depth_map))[..., None] * [1, 1, 0]
  for far in sorted(rng.uniform(1.5, 8, 3), reverse=True):
    left, wide = rng.uniform(-0.5, 0.3), 0.8 / far
    inside = (x > left) & (x < left + wide) & (
        y < 0.5 / far) & (y > 0.5 / far - 1.2 * wide)
    texture = rng.integers(60, 255, 3) - 14 * far + 15 * np.sin(
        40 * (x + y) * far)[..., None]
    image = np.where(inside[..., None], texture, image)
    depth_map = np.where(inside, far, depth_map)
  return np.clip(image, 0, 255).astype(np.uint8), depth_map


@pytest.fixture(scope='module')
def rooms(tmp_path_factory):
  root = tmp_path_factory.mktemp('rooms')
  for part, seeds in (('train', range(12)), ('test', range(100, 104))):
    for folder in ('images', 'depth'):
      (root / part / folder).mkdir(parents=True)
    for seed in seeds:
      image, metres = room(seed)
      Image.fromarray(image).save(root / part / 'images' / f'{seed}.png')
      Image.fromarray((metres * 1000).astype(np.uint16)).save(
          root / part / 'depth' / f'{seed}.png')
  return root


def settings(steps, **values):
  return depth.Settings(
      recipe='relative', channels=8, steps=steps, warmup_steps=3, batch_size=4,
      crop=(32, 32), learning_rates=(3e-3,), pictures=1, flips=False, **values)


def trained(folder, train, test, steps, **values):
  return depth.run(test_dense.job(folder, {
      'train': (train,), 'test': (test,)}), settings(steps, **values))[0]


@pytest.mark.slow  # two trainings; test_predictions.py reads heads back
def test_a_student_learns_from_what_its_teacher_saw(rooms, tmp_path):
  test = depths.test(f'depth:{rooms}/test')
  teacher = trained(tmp_path / 'teacher', depths.train(f'depth:{rooms}/train'),
                    test, 40)
  score = teacher.scores()
  assert teacher.facts['aligned'] and score['a1'] > 30, score
  store.save(str(tmp_path / 'model'), cases.weights(test_dense.CONFIG))
  stored_heads.save(str(tmp_path / 'head'), teacher.head)
  out = tmp_path / 'pseudo'
  predictions.predict(predictions.Request(
      str(tmp_path / 'model'), str(tmp_path / 'head'),
      f'folder:{rooms}/train/images', str(out), short_px=48))
  labels = depths.train(f'predicted:{out}')
  picture, inverse = labels[0].decoded()
  assert inverse.shape == (SIDE, SIDE) and picture.size == (SIDE, SIDE)
  row = json.loads((out / 'predictions.jsonl').read_text().splitlines()[0])
  levels = np.asarray(Image.open(out / row['map']), np.float64)
  np.testing.assert_allclose(
      1 / inverse[levels > 0], levels[levels > 0] * row['inverse_of_unit'],
      rtol=1e-5)
  assert levels.max() == 65_535  # a scale of its own
  student = trained(tmp_path / 'student', labels, test, 4, ignored=0.1)
  assert student.head.task.ignored == 0.1
  assert set(student.pictures) == {'test0'}
  with pytest.raises(errors.UserError, match='has no head.json: give the --'):
    depths.train(f'predicted:{rooms}')


def test_scale_and_shift_are_fitted_to_inverse_depths():
  metres = room(3)[1]
  kept, pair = depth.metrics.prepared(
      (1 / metres - 0.2) / 3, metres, metres > 0, align=True, inverse=True)
  np.testing.assert_allclose(kept, metres, rtol=1e-5)
  np.testing.assert_allclose(pair, [3, 0.2], rtol=1e-5)


def test_the_largest_errors_may_count_nowhere():
  target = jnp.asarray(np.random.default_rng(0).uniform(
      0.1, 1, (2, 8, 8)).astype(np.float32))
  wrong = target.at[0, 2, 3].set(50.0)
  valid = jnp.ones(target.shape, bool).at[1, :4].set(False)
  loss = jax.jit(affine_depth.robust, static_argnames=(
      'gradient_weight', 'ignored'))
  assert loss(target, target, valid, ignored=0.1) == 0
  assert loss(wrong, target, valid) > 10 * loss(
      wrong, target, valid, ignored=0.1, gradient_weight=0.0)
  nothing = jnp.zeros(target.shape, bool)
  value, grad = jax.jit(jax.value_and_grad(lambda x: affine_depth.robust(
      x, target, nothing, ignored=0.1)))(target)
  assert value == 0 and np.isfinite(grad).all()
