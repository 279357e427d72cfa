"""The chain against Pillow; draws; independence of batch and mesh."""

import dataclasses
import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image
import pytest

from dinojax.augment import photometric
from dinojax.data import photos
from dinojax.parallel import mesh as mesh_lib
from tests import compiled
from tests.augment import pillow_chain

SPEC = photometric.Photometric()
programs = compiled.Functions(photometric)
_NAMES = ('astronaut', 'coffee', 'ihc', 'retina', 'camera', 'flower',
          'chelsea', 'motorcycle_left')


def crops(px, views):
  """uint8 [8, v, px, px, c], one photograph a row."""
  return np.stack([
      np.stack([photo[40:40 + px, 9 * v:9 * v + px] for v in range(views)])
      for photo in map(photos.photograph, _NAMES)])


@functools.cache
def augmentation(kind):
  return jax.jit(lambda images, step, rows: photometric.augment(
      images, jax.random.key(7), step, rows, kind=kind, spec=SPEC))


# What is other of local crops, test_chain_equals_pillow compares.
@pytest.fixture(scope='module', params=[
    'global', pytest.param('local', marks=pytest.mark.slow)])
def case(request):
  """(kind, images, rows, jitted augment); rows are not in order."""
  kind = request.param
  images = crops(32, 2 if kind == 'global' else 4)
  rows = np.array([5, 900, 17, 3, 4, 250, 6, 2], np.int32)
  return kind, images, rows, augmentation(kind)


def draws_of(kind, rows, views, spec=SPEC, seed=0):
  """Draws of many rows: dict of [rows, v, …] numpy arrays."""
  probabilities = photometric.view_probabilities(spec, kind, views)
  draws = programs.draw(
      jax.random.key(seed), np.arange(rows), views, spec, *probabilities)
  return jax.tree.map(np.asarray, draws)


@pytest.mark.parametrize('kind,views', [('global', 2), ('local', 4)])
def test_chain_equals_pillow(kind, views):
  images = crops(64, views)
  draws = draws_of(kind, len(images), views, seed=3)
  got = np.asarray(jax.jit(
      lambda x, d: photometric.apply(x, d, SPEC))(images, draws))
  operations = np.zeros(4, int)
  for b in range(len(images)):
    for v in range(views):
      crop = {name: draw[b, v] for name, draw in draws.items()}
      want = np.asarray(pillow_chain.apply(
          Image.fromarray(images[b, v]), crop, SPEC), int)
      off = np.abs(got[b, v] - want)
      if crop['solarize']:  # a level at the threshold jumps by up to 255
        off = np.minimum(off, np.abs(255 - got[b, v] - want))
      # One step of an 8-bit hue (see test_color) is magnified by later blends.
      assert off.max() <= 12, (b, v, crop)
      assert off.mean() < 0.1, (b, v, crop)
      operations += [crop['hue'] != 0, crop['grey'], crop['blur'],
                     crop['solarize']]
  assert operations[:3].all(), 'the seed leaves an operation untested'
  assert operations[3] or kind == 'local'


def test_every_order_of_the_jitter_equals_pillow():
  orders = np.array([
      (a, b, c, 6 - a - b - c) for a in range(4) for b in range(4)
      for c in range(4) if len({a, b, c}) == 3], np.int32)
  image = photos.photograph('coffee')[100:148, 200:248]
  count = len(orders)
  off = np.zeros((1, count), bool)
  draws = {
      'factors': np.tile(np.float32([1.3, 0.7, 1.15]), (1, count, 1)),
      'hue': np.full((1, count), -0.07, np.float32), 'order': orders[None],
      'grey': off, 'blur': off, 'solarize': off,
      'sigma': np.ones((1, count), np.float32)}
  got = np.asarray(jax.jit(lambda x, d: photometric.apply(
      x, d, SPEC, False, False))(np.tile(image, (1, count, 1, 1, 1)), draws))
  for i in range(count):
    crop = {name: draw[0, i] for name, draw in draws.items()}
    want = np.asarray(pillow_chain.apply(Image.fromarray(image), crop, SPEC))
    assert np.abs(got[0, i] - want.astype(int)).mean() < 0.1, orders[i]
  # The orders do differ: otherwise the comparison would prove little.
  assert np.abs(got[0] - got[0, :1]).mean((1, 2, 3)).max() > 0.5


@pytest.mark.parametrize('blur', ['released', 'paper'])
def test_draws_follow_their_probabilities(blur):
  spec = dataclasses.replace(SPEC, blur=blur)
  rows = 4096
  within = 5 * 0.5 / rows ** 0.5  # five standard errors
  tables = photometric.BLUR_PROBABILITIES[blur], spec.solarize_probability
  both = draws_of('global', rows, 2, spec)
  local = draws_of('local', rows, 1, spec)
  for place, (draws, view) in enumerate([(both, 0), (both, 1), (local, 0)]):
    share = lambda flags, v=view: flags[:, v].mean()
    for name, table in zip(('blur', 'solarize'), tables, strict=True):
      assert abs(share(draws[name]) - table[place]) < within
      if table[place] in (0, 1):
        assert share(draws[name]) == table[place]
    assert abs(share(draws['hue'] != 0) - 0.8) < within
    assert abs(share(draws['grey']) - 0.2) < within


def test_draws_fill_their_ranges_and_orders():
  draws = draws_of('local', 4096, 1)
  jittered = draws['hue'][:, 0] != 0
  factors = draws['factors'][jittered, 0]
  ranges = {'brightness': (0.6, 1.4), 'contrast': (0.6, 1.4),
            'saturation': (0.8, 1.2)}
  columns = [*factors.T, draws['hue'][jittered, 0], draws['sigma'][:, 0]]
  for column, (low, high) in zip(
      columns, [*ranges.values(), (-0.1, 0.1), (0.1, 2.0)], strict=True):
    assert low <= column.min() and column.max() <= high
    # Uniform: deciles at their places to 0.05 of the width.
    np.testing.assert_allclose(
        (np.quantile(column, np.linspace(0.1, 0.9, 9)) - low) / (high - low),
        np.linspace(0.1, 0.9, 9), atol=0.05)
  assert (draws['factors'][~jittered] == 1).all()
  orders, counts = np.unique(draws['order'][:, 0], axis=0, return_counts=True)
  assert len(orders) == 24
  assert counts.min() > 0.6 * 4096 / 24


def test_draws_of_a_crop_are_not_tied_to_each_other():
  draws = draws_of('local', 4096, 2)
  columns = np.stack([
      *draws['factors'][:, 0].T, draws['hue'][:, 0], draws['sigma'][:, 0],
      draws['grey'][:, 0], draws['blur'][:, 0], draws['sigma'][:, 1],
      draws['grey'][:, 1]])[:, draws['hue'][:, 0] != 0]
  correlation = np.corrcoef(columns) - np.eye(len(columns))
  assert np.abs(correlation).max() < 0.1


def test_a_crop_does_not_depend_on_its_batch(case):
  _, images, rows, call = case
  whole = np.asarray(call(images, 11, rows))
  turned = np.asarray(call(images[::-1], 11, rows[::-1]))[::-1]
  np.testing.assert_array_equal(turned, whole)
  part = np.asarray(call(images[2:4], 11, rows[2:4]))
  # Another batch size is another program: products may differ in a last bit,
  # and a cut at a whole number turns that into a level (0.018 normalised).
  assert (np.abs(part - whole[2:4]) > 1e-5).mean() < 1e-3


def test_row_step_and_kind_each_change_the_crop(case):
  kind, images, rows, call = case
  same = np.repeat(images[:1], len(images), axis=0)
  first = np.asarray(call(same, 11, rows))
  assert len({crop.tobytes() for crop in first[:, -1]}) == len(rows)
  later = np.asarray(call(same, 12, rows))
  assert (np.abs(first - later).mean((2, 3, 4)) > 0.01).mean() > 0.8
  other = 'local' if kind == 'global' else 'global'
  second = np.asarray(augmentation(other)(same, 11, rows))
  assert (np.abs(first - second).mean((2, 3, 4)) > 0.01).mean() > 0.8


def test_views_of_a_sample_differ():
  spec = dataclasses.replace(
      SPEC, jitter_probability=1.0, grayscale_probability=0.0)
  image = np.repeat(crops(16, 1)[:2], 6, axis=1)  # in colour: hue shows
  got = np.asarray(programs.augment(
      image, jax.random.key(0), 0, np.arange(2), kind='local', spec=spec))
  for sample in got:
    assert len({view.tobytes() for view in sample}) == 6


def test_the_same_call_gives_the_same_bits(case):
  _, images, rows, call = case
  np.testing.assert_array_equal(
      call(images, 3, rows), call(images, 3, rows))


@pytest.mark.parametrize('shape', [
    (2, 4), pytest.param((8, 1), marks=pytest.mark.slow, id='rows-alone')])
def test_a_mesh_changes_nothing_and_nothing_is_sent(shape, case):
  _, images, rows, call = case
  want = np.asarray(call(images, 11, rows))
  mesh = mesh_lib.make(*shape)
  with mesh_lib.activate(mesh):
    sharding = jax.NamedSharding(mesh, mesh_lib.ROWS)
    placed = jax.device_put((images, rows), sharding)
    arguments = placed[0], np.int32(11), placed[1]
    program = call.lower(*arguments).compile()
    got = program(*arguments)
  assert got.sharding.spec[0] == mesh_lib.AXES
  # See test_a_crop_does_not_depend_on_its_batch.
  assert (np.abs(np.asarray(got) - want) > 1e-5).mean() < 1e-3
  sent = re.findall(
      r'\b(all-\w+|reduce-scatter|collective-\w+)(?:-start)?\(',
      program.as_text())
  assert not sent


def test_dtype_and_normalisation():
  images = crops(16, 2)
  quiet = dataclasses.replace(
      SPEC, jitter_probability=0.0, grayscale_probability=0.0,
      solarize_probability=(0.0, 0.0, 0.0))
  got = {dtype: programs.augment(
      images, jax.random.key(0), 0, np.arange(8), kind='global', spec=quiet,
      dtype=dtype) for dtype in (jnp.float32, jnp.bfloat16)}
  assert got[jnp.bfloat16].dtype == jnp.bfloat16
  # The first global view is never blurred: with all else off, untouched.
  want = (images[:, 0] / 255 - SPEC.mean) / SPEC.std
  np.testing.assert_allclose(got[jnp.float32][:, 0], want, atol=1e-5)
  np.testing.assert_array_equal(
      got[jnp.bfloat16], got[jnp.float32].astype(jnp.bfloat16))
  np.testing.assert_allclose(
      programs.normalize(images[:, 0]), want, atol=1e-5)
