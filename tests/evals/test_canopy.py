"""Canopy heights: their sets, a head that learns them, and one that is given.
"""

import dataclasses

import jax
import numpy as np
from PIL import Image
import pytest

from dinojax.core import errors
from dinojax.evals import dense_training
from dinojax.evals import registry
from dinojax.evals import stored_heads
from dinojax.evals.protocols import canopy
from dinojax.evals.sets import heights as sets
from dinojax.probes import head as head_lib
from dinojax.probes.tasks import segment
from tests import rasters
from tests.evals import test_dense
from tests.interop import cases

# At three times the rate all responses but one die: heights are of the ground.
QUICK = dict(channels=32, num_bins=32, max_height=32.0, learning_rate=3e-4,
             steps=240, batch_size=4, crop=(32, 32), block_m=2.0, pictures=2)


@pytest.fixture(scope='module')
def scenes(tmp_path_factory):
  root = tmp_path_factory.mktemp('canopy')
  rasters.save_set(root / 'train', 8, (48, 40), 0)
  rasters.save_set(root / 'test', 3, (48, 40), 1)
  return root


def job(folder, scenes, **values):
  opened = {part: (sets.opened(f'heights:{scenes}/{part}'),)
            for part in ('train', 'test')}
  return test_dense.job(folder, opened, **values)


@pytest.mark.slow  # a training of minutes
def test_heights_are_learned_and_a_head_is_measured_again(scenes, tmp_path):
  counted = []
  settings = canopy.Settings(train='x', **QUICK)
  measured, = canopy.run(
      job(tmp_path, scenes, progress=counted.append), settings)
  got = measured.scores()
  assert got['R2'] > 0.5 and got['block R2'] > 0.5, got
  assert got['MAE'] < 6 and abs(got['bias']) < 3, got
  assert sum(counted) == canopy.passes(settings, {'test': 3})
  assert set(measured.pictures) == {'test0', 'test2'}
  stored_heads.save(str(tmp_path / 'head'), measured.head)
  again, = canopy.run(job(tmp_path, scenes), canopy.Settings(
      head=str(tmp_path / 'head'), block_m=2.0, pictures=0))
  for name, value in again.scores().items():
    np.testing.assert_allclose(value, got[name], rtol=1e-6)
  assert again.head is None


def test_heights_have_a_ground_and_what_is_unknown(scenes):
  test = sets.opened(f'heights:{scenes}/test')
  picture, truth = test[0].decoded()
  assert picture.size == (40, 48) and truth.shape == (48, 40)
  assert not truth[:2].any() and (truth[2:] >= sets.GROUND_M).all()
  assert (truth == np.float32(sets.GROUND_M)).any()
  np.testing.assert_allclose(test.metres(0), rasters.METRES, rtol=1e-3)


def png(folder, units, colour=False):
  for part in ('images', 'heights'):
    (folder / part).mkdir(parents=True)
  Image.new('RGB', (4, 3)).save(folder / 'images/a.png')
  picture = Image.new('RGB', (4, 3)) if colour else Image.fromarray(units)
  picture.save(folder / 'heights/a.png')
  return f'heights:{folder}'


def test_heights_of_16_bits(tmp_path):
  units = np.full((3, 4), 250, np.uint16)
  units[0] = 65_535, 0, 1000, 65_535
  spec = png(tmp_path / 'x', units)
  got = sets.opened(f'{spec}?scale=0.01&metres=0.6')
  np.testing.assert_allclose(got[0].map()[0], [0, 0.001, 10, 0])
  assert got.metres(0) == 0.6
  for words, text in (
      ('', 'is no GeoTIFF of metres: give the metres of a unit'),
      ('?scale=-1', 'scale=-1 is no number above 0'),
      ('?pixel=1', 'pixel is no option of heights')):
    with pytest.raises(errors.UserError, match=text):
      sets.opened(spec + words)
  with pytest.raises(errors.UserError, match=r'a.png has no coordinates.*'
                     r'\?metres=0.6'):
    sets.opened(f'{spec}?scale=0.01').metres(0)
  spec = png(tmp_path / 'y', units, colour=True)
  with pytest.raises(errors.UserError, match='a.png has colours where heigh'):
    sets.opened(f'{spec}?scale=0.01')[0].map()
  with pytest.raises(errors.UserError, match='is no set of images with heig'):
    sets.opened('depth:x')


def test_a_head_or_a_set_to_learn_from():
  for values, text in (({}, 'are missing: give a head'),
                       ({'head': 'a', 'train': 'b'}, 'are both given')):
    with pytest.raises(errors.UserError, match=text):
      canopy.check(canopy.Settings(**values), test_dense.CONFIG)
  with pytest.raises(errors.UserError, match='four maps of one size'):
    canopy.check(canopy.Settings(head='a'), cases.CONVNEXT)


def test_numbers_depend_on_what_is_in_a_head(tmp_path):
  (tmp_path / 'model.safetensors').write_bytes(b'one')
  settings = dataclasses.replace(registry.Settings(), canopy=canopy.Settings(
      head=str(tmp_path)))
  first = registry.contents('canopy', settings)
  (tmp_path / 'model.safetensors').write_bytes(b'two')
  assert first.keys() == {'head'} and registry.contents(
      'canopy', settings) != first
  assert registry.contents('canopy', registry.Settings()) == {}


def test_heads_that_give_no_metres_are_refused(scenes, tmp_path):
  width = test_dense.CONFIG.embed_dim
  task = segment.Segment(num_outputs=3, width=width)
  parts = jax.tree.map(lambda x: np.zeros(x.shape, np.float32),
                       head_lib.shapes_of(task, (width,)))
  stored_heads.save(str(tmp_path / 'head'), head_lib.Head(
      task, parts['params'], parts['stats'], head_lib.Origin(
          '', '', (width,)), ('a', 'b', 'c')))
  with pytest.raises(errors.UserError, match='is of segmentation, and predic'):
    canopy.run(job(tmp_path, scenes), canopy.Settings(
        head=str(tmp_path / 'head')))


def test_a_head_that_has_died_is_told(scenes, tmp_path):
  task = canopy.task_of(canopy.Settings(
      channels=2, num_bins=4), test_dense.model())
  widths = (test_dense.CONFIG.embed_dim,) * 4
  head = jax.device_get(task.init(jax.random.key(0), widths, ''))
  last = head['params']['head']['conv2']
  last['kernel'] = np.zeros_like(last['kernel'])
  stored_heads.save(str(tmp_path / 'head'), head_lib.Head(
      task, head['params'], head['stats'], head_lib.Origin('', '', widths)))
  told = []
  given = dataclasses.replace(job(tmp_path, scenes), say=told.append)
  canopy.run(given, canopy.Settings(
      head=str(tmp_path / 'head'), block_m=2.0, pictures=0))
  assert 'canopy of heights:' in told[-1] and 'lower learning rate' in told[-1]
  told.clear()
  # In any unit: a unit of 1e-6 is no reason to think it flat.
  maps = np.array([[[0, 0], [0, 0]], [[1, 1], [1, -4]]]) * 1e-6
  spreads = dense_training.spread(maps)
  np.testing.assert_allclose(spreads, [0, 1.25])
  dense_training.tell_flat(given, 'canopy', 'x', spreads)
  dense_training.tell_flat(given, 'canopy', 'x', np.array([]))
  assert not told


def test_a_trained_head_is_of_the_form_of_the_published_one():
  task = canopy.task_of(canopy.Settings(), test_dense.model())
  assert (task.spacing, task.normalize, task.max_depth) == (
      'mixed', 'mixed', 96.0)
  head = task.head
  assert (head.readout, head.hidden, head.bias, head.projects, head.norm) == (
      'project', 128, True, False, False)
  width = test_dense.CONFIG.embed_dim
  assert head.projected == (width // 8, width // 4, width // 2, width)
