"""Heads for every pixel: colours, padding, statistics."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image
import pytest

from dinojax.augment import distortion
from dinojax.augment import photometric
from dinojax.data import map_crops
from dinojax.engine import schedules
from dinojax.kernels import resample
from dinojax.probes.tasks import dense
from dinojax.probes.tasks import depth
from dinojax.probes.tasks import segment


def images(rows=6, size=(20, 24)):
  return jnp.asarray(np.random.default_rng(0).integers(
      0, 256, (rows, *size, 3)), jnp.float32)


@pytest.mark.parametrize('change', [distortion.distort, distortion.recolor])
def test_colours_depend_on_the_place_alone(change):
  key, x = jax.random.key(3), images()
  whole = jax.jit(change)(x, key)
  np.testing.assert_array_equal(jax.jit(change)(x[:4], key), whole[:4])
  assert ((whole >= 0) & (whole <= 255)).all()
  assert not np.array_equal(whole, x)
  assert not np.array_equal(jax.jit(change)(x, jax.random.key(4)), whole)


def test_half_of_the_images_keep_their_colours():
  x = jnp.broadcast_to(images(1), (400, 20, 24, 3))
  kept = (jax.jit(distortion.recolor)(x, jax.random.key(0)) == x).all((1, 2, 3))
  assert 0.42 < kept.mean() < 0.58
  kept = (jax.jit(distortion.distort)(x, jax.random.key(0)) == x).all((1, 2, 3))
  assert 0.03 < kept.mean() < 0.1  # a sixteenth


def test_prepare_gives_normalised_images_with_nothing_around():
  """Without distortion levels come back; beyond the extent lie zeros."""
  pixels = dense.Pixels(patch_px=14)
  x = images()
  batch = {'image': photometric.normalize(x),
           'extent': jnp.array([[20, 24]] * 5 + [[8, 9]])}
  task = segment.Segment(num_outputs=3, width=4, pixels=pixels)
  out = jax.jit(task.prepare)(batch, jax.random.key(0))['image']
  assert out.shape == (6, 28, 28, 3)
  np.testing.assert_allclose(
      out[:5, 4:24, 2:26], batch['image'][:5], atol=1e-6)
  assert (out[5, 12:] == 0).all() and (out[5, :, 11:] == 0).all()
  assert (out[:, :4] == 0).all()
  np.testing.assert_array_equal(pixels.levels(batch['image']), x)
  colours = jax.jit(segment.Segment(
      num_outputs=3, width=4, pixels=pixels, distorts=True).prepare)(
          batch, jax.random.key(0))
  assert not np.allclose(colours['image'], out)
  assert (colours['image'][5, 12:] == 0).all()


def test_padding_is_cut_off_predictions():
  """A ramp over the padded image, seen where the image lies."""
  pixels = dense.Pixels(patch_px=14)
  ramp = (np.arange(3) + 0.5) / 3  # of three patches, 42 pixels
  whole = resample.linear_matrix(3, 42) @ ramp
  np.testing.assert_allclose(
      pixels.matrix(3, 30) @ ramp, whole[6:36], atol=1e-6)
  kept = dense.Pixels(patch_px=14, keeps_padding=True)
  np.testing.assert_allclose(
      kept.matrix(3, 30), resample.linear_matrix(3, 30), atol=1e-6)
  np.testing.assert_allclose(  # to another size at once
      pixels.matrix(3, 30, 60) @ ramp,
      resample.linear_matrix(3, 84)[12:72] @ ramp, atol=1e-6)


def test_a_linear_layer_before_resizing_equals_one_after():
  task = depth.Depth(num_outputs=5, width=12, cls=True, norm=False,
                     upsample=4)
  rng = np.random.default_rng(1)
  layers = [{'map': jnp.asarray(rng.normal(size=(2, *size, 3)), jnp.float32),
             'cls': jnp.asarray(rng.normal(size=(2, 3)), jnp.float32)}
            for size in ((4, 5), (2, 3))]
  head = task.init(jax.random.key(0), (3, 3), dense.CHOICE)
  got, _ = task.outputs(head, layers, {}, None)
  joined = jnp.concatenate([resample.resize_linear(jnp.concatenate([
      layer['map'], jnp.broadcast_to(layer['cls'][:, None, None], (
          *layer['map'].shape[:3], 3))], -1), (16, 20)) for layer in layers],
                           -1)
  want = np.asarray(joined) @ np.asarray(head['params']['kernel']) + (
      np.asarray(head['params']['bias']))
  np.testing.assert_allclose(got, want, atol=1e-5)


def test_rows_that_are_padding_teach_nothing():
  task = segment.Segment(num_outputs=3, width=4, dropout=0.5)
  rng = np.random.default_rng(0)
  maps = rng.normal(size=(3, 4, 4, 4)).astype(np.float32)
  classes = rng.integers(0, 3, (3, 8, 8)).astype(np.uint8)
  head = task.init(jax.random.key(0), (4,), dense.CHOICE)

  @functools.partial(jax.jit, static_argnums=(0, 1))
  def run(count, fill):
    weight = np.float32([1, 1, 0][:count])
    draws = {'channels': jnp.ones((count, 4))}
    given = maps[:count].copy()
    given[2:] = fill
    batch = {'classes': classes[:count], 'weight': weight}
    out, stats = task.outputs(head, [{'map': given}], batch, draws)
    return task.loss(out, batch, draws), stats

  for got, want in zip(jax.tree.leaves(run(3, 1e3)),
                       jax.tree.leaves(run(2, 0.0)), strict=True):
    np.testing.assert_allclose(got, want, rtol=1e-5)


def test_crops_keep_image_and_map_together():
  """A pixel's class is written in its colour, whatever is drawn."""
  rng = np.random.default_rng(0)
  classes = np.repeat(np.repeat(rng.integers(0, 4, (5, 7)), 20, 0), 20, 1)
  picture = Image.fromarray(np.repeat(
      (60 * classes)[..., None], 3, -1).astype(np.uint8))
  crops = map_crops.Scaled(100, (0.5, 2.0), 96, 0.75, 255)
  extents = set()
  for seed in range(12):
    out = crops(picture, classes.astype(np.uint8), np.random.default_rng(seed))
    y, x = out['extent']
    assert out['image'].shape == (96, 96, 3)
    label = out['classes'][:y, :x].astype(int)
    gap = np.abs(out['image'][:y, :x, 0].astype(int) - 60 * label)
    assert (gap < 8).mean() > 0.75  # but for edges, where colours mix
    assert (out['classes'][y:] == 255).all() and (
        out['classes'][:, x:] == 255).all()
    extents.add((int(y), int(x)))
  assert (96, 96) in extents and min(y for y, _ in extents) < 96
  turned = map_crops.Turned((60, 80), degrees=2.5)
  for seed in range(8):
    out = turned(picture, (1.0 + classes).astype(np.float32),
                 np.random.default_rng(seed))
    assert set(np.unique(out['depth'])) <= {0, 1, 2, 3, 4}
    known = out['depth'] > 0
    gap = np.abs(out['image'][..., 0] - 60 * (out['depth'] - 1))
    assert known.mean() > 0.9 and (gap[known] < 8).mean() > 0.75


def test_a_crop_of_a_single_class_is_drawn_again():
  """One corner has a second class: crops without it are taken only last."""
  classes = np.zeros((200, 200), np.uint8)
  classes[:80, :80] = 1
  picture = Image.fromarray(np.zeros((200, 200, 3), np.uint8))
  crops = map_crops.Scaled(200, (1.0, 1.0), 100, 0.75, 255)
  mixed = [len(np.unique(crops(picture, classes, np.random.default_rng(
      seed))['classes'])) > 1 for seed in range(40)]
  first = [len(np.unique(map_crops.cut(classes, map_crops.corner(
      (200, 200), (100, 100), np.random.default_rng(seed))))) > 1
           for seed in range(40)]
  assert np.mean(mixed) > 0.9 > np.mean(first)


def test_schedules_of_dense_heads():
  poly = schedules.WarmupDecay(100, 10, 1e-6)
  assert poly(0) == pytest.approx(1e-6) and poly(50) == 0.5
  assert poly(10) == pytest.approx(0.9) and poly(5) == pytest.approx(
      0.95 * 0.5, rel=1e-4)
  cosine = schedules.WarmupDecay(100, 10, 1e-3, 'cosine', 1e-8)
  assert cosine(50) == pytest.approx(0.5) and cosine(100) == pytest.approx(
      1e-8)
  momentum = schedules.DepthMomentum(100, 20)
  assert momentum(19) == 0 and momentum(20) == 0.85
  assert momentum(100) == pytest.approx(0.95)
