"""Weights and images that the tests of embedding share."""


from PIL import Image
import pytest

import dinojax
from dinojax.data import photos
from dinojax.interop import store
from tests.features import embedded
from tests.interop import cases


@pytest.fixture(scope='module')
def weights(tmp_path_factory):
  folder = tmp_path_factory.mktemp('weights') / 'tiny'
  store.save(str(folder), cases.weights(embedded.CONFIG, seed=0))
  return folder


@pytest.fixture(scope='module')
def model(weights):
  return dinojax.load(str(weights))


@pytest.fixture
def folder(tmp_path):
  """Pieces of a photograph of many sizes, in two sub-folders and loose."""
  photo = Image.fromarray(photos.photograph('coffee'))
  for i, (width, height) in enumerate(embedded.SIZES):
    place = tmp_path / 'images' / ('' if i == 10 else 'ab'[i % 2])
    place.mkdir(parents=True, exist_ok=True)
    photo.crop((9 * i, 7 * i, 9 * i + width, 7 * i + height)).save(
        place / f'{i:02d}.png')
  return tmp_path / 'images'
