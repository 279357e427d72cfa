"""Describers: SSCD's weights in batches, and words that are not understood."""

import io

import numpy as np
from PIL import Image
import pytest
from safetensors import numpy as safetensors

from dinojax.core import errors
from dinojax.curate import describers
from dinojax.curate import onnx_descriptor
from dinojax.curate import resizing
from dinojax.data import record
from dinojax.models import sscd
from tests.curate import test_recipe
from tests.models import test_sscd


class Pictures:
  """A source of pictures of several sizes; one is none."""

  spec, classes = 'pictures', ()

  def __init__(self, sizes):
    self._data = [test_recipe.encoded(test_recipe.picture(i).resize(size))
                  for i, size in enumerate(sizes)]
    self._data.insert(2, b'no picture')

  def __len__(self):
    return len(self._data)

  def __getitem__(self, index):
    return record.Record(self._data[index], -1, str(index))


@pytest.fixture(scope='module')
def weights(tmp_path_factory):
  path = tmp_path_factory.mktemp('sscd') / 'sscd.safetensors'
  safetensors.save_file(test_sscd.state(), path)
  return str(path)


def parse(text, **changes):
  return describers.parse(text, None, **{
      'where': 'describe.descriptor', 'resize': '', 'resize_px': 256,
      'crop_px': 224, 'batch_size': 4} | changes)


@pytest.mark.parametrize('resize', [
    pytest.param('square:48', marks=pytest.mark.slow), 'short:40'])
def test_sscd_gives_what_its_network_gives_alone(weights, resize):
  source = Pictures([(60, 50), (50, 60), (60, 50), (80, 44), (50, 60)] * 2)
  describer = parse(f'sscd:{weights}', resize=resize)
  assert describer.whole and describer.facts()['resize'] == resize
  index, got = map(np.concatenate, zip(
      *describer.describe(source), strict=True))
  assert index.tolist() == [0, 1, *range(3, 11)]
  network = sscd.load(test_sscd.state(), 'it')
  for i, row in zip(index, got, strict=True):
    pixels = np.asarray(Image.open(io.BytesIO(source[i].image)))
    pixels = resizing.Resize(resize)(pixels) / np.float32(255)
    mean, std = map(np.float32, onnx_descriptor.IMAGENET)
    want = network(((pixels - mean) / std)[None])[0]
    np.testing.assert_allclose(row, want, atol=2e-6)


def test_sizes_suit_the_kind(weights):
  assert parse(f'sscd:{weights}').resize == 'square:320'
  assert parse('onnx:FILE').resize == 'short:288'


@pytest.mark.parametrize('text, words', [
    ('sscd:', 'is not understood'), ('pixels:1', 'is not understood'),
    ('dinov2', 'give model:NAME'), ('', 'describe.descriptor')])
def test_other_words_are_refused(text, words):
  with pytest.raises(errors.UserError, match=words):
    parse(text)


def test_other_files_are_refused(tmp_path):
  with pytest.raises(errors.UserError, match='does not exist'):
    parse(f'sscd:{tmp_path}/none.pt').facts()
  path = tmp_path / 'other.safetensors'
  safetensors.save_file({'x': np.zeros(3, np.float32)}, path)
  with pytest.raises(errors.UserError, match='is no SSCD network'):
    parse(f'sscd:{path}').facts()
