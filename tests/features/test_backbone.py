"""`dinojax.load` and `dinojax.train` as a program meets them."""

import dataclasses
import errno
import inspect
import io
import json
import pathlib

from absl import flags
import jax
import numpy as np
from PIL import Image
import pytest

import dinojax
from dinojax.core import atomic
from dinojax.core import errors
from dinojax.core import tree
from dinojax.engine import loop
from dinojax.features import backbone as backbone_lib
from dinojax.interop import files
from dinojax.interop import store
from dinojax.runs import assemble
from tests.fuzz import weights as tiny
from tests.interop import cases


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  place = tmp_path_factory.mktemp('m') / 'model'
  store.save(str(place), tiny.tiny(tiny.CONFIG))
  return place


@pytest.fixture(scope='module')
def model(folder):
  return dinojax.load(folder)  # a pathlib.Path


@pytest.fixture(scope='module')
def photo(tmp_path_factory):
  pixels = np.random.default_rng(0).integers(
      0, 256, (300, 280, 3), dtype=np.uint8)
  path = tmp_path_factory.mktemp('photo') / 'a.png'
  Image.fromarray(pixels).save(path)
  return path, pixels


def test_one_image_or_many_of_any_kind(model, photo):
  path, pixels = photo
  data = io.BytesIO(path.read_bytes()).getvalue()
  image = Image.fromarray(pixels)
  expected = model.preprocess([str(path)])
  assert expected.shape == (1, 224, 224, 3) and expected.dtype == np.float32
  for images in (path, str(path), data, image, pixels, pixels[None],
                 iter([path])):
    np.testing.assert_array_equal(model.preprocess(images), expected)
  mixed = model.preprocess([path, data, image, pixels])
  np.testing.assert_array_equal(mixed, np.repeat(expected, 4, 0))
  grey = pixels[..., 0]
  np.testing.assert_array_equal(
      model.preprocess(grey), model.preprocess(np.stack([grey] * 3, -1)))
  np.testing.assert_array_equal(
      model.preprocess(grey[..., None]), model.preprocess(grey))
  assert model.preprocess([pixels, pixels[:250]], crop_px=32).shape == (
      2, 32, 32, 3)


@pytest.mark.parametrize(('images', 'text'), [
    ([], 'no images'), (3, 'int is no image'), ([3], 'image 0: an array of'),
    (['a.jpg', None], 'a.jpg cannot be read'), ([b'no'], 'image 0 cannot'),
    (np.zeros((4, 4, 3)), 'give pixels as uint8'),
    (np.zeros((4, 4, 5), np.uint8), 'is no image'),
    (np.zeros((0, 4, 3), np.uint8), 'is no image'),
    ([np.zeros((4, 4, 3), np.float32)], 'from 0 to 255'),
    ('~no-such-user/a.jpg', 'no home folder')])
def test_what_is_no_image_is_named(model, images, text):
  with pytest.raises(errors.UserError, match=text):
    model.preprocess(images)
  with pytest.raises(errors.UserError, match='set resize_px'):
    model.preprocess(images, crop_px=300)


@pytest.mark.parametrize(('images', 'text'), [
    (np.zeros((1, 4, 4, 3), np.uint8), 'uint8 and not normalised floats: .*'
     'model.preprocess'),
    (np.full((1, 4, 4, 3), 200.0), 'from 200 to 200, pixels that are not'),
    (np.zeros((1, 3, 4, 4), np.float32), r'transpose\(0, 2, 3, 1\)'),
    (np.zeros((4, 4, 3), np.float32), r'images\[None\]'),
    (np.zeros((0, 4, 4, 3), np.float32), 'are not'),
    (np.zeros((1, 4, 5, 3), np.float32), 'whole patches of 2')])
def test_pixels_are_never_taken_for_normalised_ones(model, images, text):
  for call in (model, model.intermediate, model.attention_maps):
    with pytest.raises(errors.UserError, match=text):
      call(images)


def test_blocks_that_are_not_there(model):
  images = np.zeros((1, 4, 4, 3), np.float32)
  for layer in (1, -2):
    with pytest.raises(errors.UserError, match=f'layer={layer} is not in'):
      model.attention_maps(images, layer)


def test_a_model_says_what_it_is(model, folder):
  num = tree.num_elements(model.params) / 1e6
  for text in ('ViT of 1 blocks, width 8, 2 heads, patches of 2 px',
               'learned positions for 4 px', f'{num:.3g} M parameters',
               str(folder), '(meta)', 'mean 0.485/0.456/0.406, std 0.229'):
    assert text in repr(model)
  assert len(repr(model)) < 300 + len(str(folder))
  features = model(np.zeros((2, 4, 4, 3), np.float32))
  assert repr(features) == (
      'dinojax.Features(cls [2, 8], registers [2, 0, 8], patches [2, 4, 8], '
      'float32)')


@pytest.mark.parametrize('function', [
    dinojax.load, dinojax._train, backbone_lib.Backbone.preprocess,
    backbone_lib.Backbone.__call__, backbone_lib.Backbone.intermediate,
    backbone_lib.Backbone.attention_maps])
def test_every_argument_is_explained(function):
  for name in set(inspect.signature(function).parameters) - {'self'}:
    assert f'{name}: ' in function.__doc__, name
  assert 'Raises:' in function.__doc__


def test_training_is_called_by_the_name_of_its_package(monkeypatch, tmp_path):
  calls = []
  monkeypatch.setattr(assemble, 'train', lambda *args: calls.append(args))
  monkeypatch.setattr(assemble, 'compile_cache', calls.append)
  flags.FLAGS.unparse_flags()  # as in a notebook, where nothing parses them
  dinojax.train({'seed': 1}, pathlib.Path(tmp_path), compile_cache='')
  assert calls == ['', ({'seed': 1}, str(tmp_path))]
  assert flags.FLAGS.is_parsed()
  dinojax.train('vits:smoke', '~/x', compile_cache='')
  assert calls[-1][0].model.patch_px > 0 and calls[-1][1] == '~/x'
  names = lambda function: list(inspect.signature(function).parameters)
  assert names(dinojax.train) == names(dinojax._train)
  assert dinojax.engine.loop is loop


def test_a_result_is_three_lines():
  result = loop.Result({'step': 0, 'student': {}}, 7, True, False, 65.0,
                       {'knn/trained': 0.81234})
  assert repr(result).splitlines() == [
      'Result: finished at step 7 after 1m05s of training',
      'evaluation: knn/trained 0.8123',
      'state, on the devices: step, student']


def test_a_second_checkpoint_of_a_model_compiles_nothing():
  first, second = (backbone_lib.Backbone.of(cases.weights(cases.V3, seed=seed))
                   for seed in (0, 1))
  images = cases.images(cases.V3, (4, 4))
  want = first(images)
  compiled = []
  jax.monitoring.register_event_duration_secs_listener(
      lambda name, _, **kwargs: compiled.append(name)
      if name.endswith('backend_compile_duration') else None)
  other = second(images)
  assert not compiled
  assert np.abs(other.cls - want.cls).max() > 0.1
  np.testing.assert_array_equal(first(images).cls, want.cls)
  first.intermediate(images, [0])
  assert compiled  # it is another program


def test_greys_are_read_as_in_training(tmp_path):
  """Else a model of 12-bit images would see nothing but black."""
  weights = dataclasses.replace(
      cases.weights(cases.V3), value_range=(0.0, 4095.0))
  store.save(str(tmp_path / 'm'), weights)
  model = dinojax.load(tmp_path / 'm')
  assert 'greys from 0 to 4095' in repr(model)
  ramp = np.linspace(0, 4095, 256 * 256).reshape(256, 256)
  images = {}
  for name, pixels in (('deep', ramp), ('plain', ramp / 16)):
    path = tmp_path / f'{name}.png'
    Image.fromarray(pixels.astype(
        np.uint16 if name == 'deep' else np.uint8)).save(path)
    images[name] = model.preprocess(path)
  np.testing.assert_allclose(images['deep'], images['plain'], atol=0.05)
  other = dataclasses.replace(weights, value_range=())
  black = backbone_lib.Backbone.of(other).preprocess(tmp_path / 'deep.png')
  assert black.max() < images['deep'].max() - 1


@pytest.mark.parametrize('junk', [[1], [5, 5], [0, 1, 2], 'x', [None, 1], {}])
def test_a_range_of_greys_that_is_none_is_refused(tmp_path, junk):
  store.save(str(tmp_path), cases.weights(cases.V3))
  path = tmp_path / store.DESCRIPTION
  path.write_text(json.dumps(
      json.loads(path.read_text()) | {'value_range': junk}))
  with pytest.raises(errors.UserError, match='value_range'):
    dinojax.load(tmp_path)


@pytest.mark.parametrize('stage', ['tensors', 'description'])
def test_a_model_that_is_replaced_is_the_old_one_or_none(
    tmp_path, monkeypatch, stage):
  old, new = (cases.weights(cases.V3, seed=seed) for seed in (0, 1))
  store.save(str(tmp_path), old)

  def fail(*_):
    raise OSError(errno.ENOSPC, 'No space left on device')

  if stage == 'tensors':
    monkeypatch.setattr(files, 'write_safetensors', fail)
  else:
    monkeypatch.setattr(atomic, 'write_text', fail)
  with pytest.raises(OSError, match='No space'):
    store.save(str(tmp_path), new)
  if stage == 'tensors':
    jax.tree.map(np.testing.assert_array_equal,
                 store.load(str(tmp_path)).params, old.params)
  else:
    with pytest.raises(errors.UserError, match='model.json is missing'):
      store.load(str(tmp_path))
