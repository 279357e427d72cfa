"""The hash of an image outlives storing and resizing, and nothing else."""

import io

import numpy as np
from PIL import Image
import pytest

from dinojax.core import errors
from dinojax.curate import pca_hash


def scenes(count, seed=0):
  """Images of a few soft shapes, 96 × 128."""
  rng = np.random.default_rng(seed)
  for _ in range(count):
    low = rng.integers(0, 256, (12, 16, 3), dtype=np.uint8)
    yield Image.fromarray(low).resize((128, 96), Image.Resampling.BICUBIC)


def stored(picture, quality=30):
  file = io.BytesIO()
  picture.save(file, 'jpeg', quality=quality)
  return Image.open(file)


CHANGES = {
    'jpeg': stored, 'half': lambda p: p.resize((64, 48)),
    'grey': lambda p: p.convert('L').convert('RGB'),
    'mirror': lambda p: p.transpose(Image.Transpose.FLIP_LEFT_RIGHT),
    'turned': lambda p: p.transpose(Image.Transpose.ROTATE_90),
    'cropped': lambda p: p.crop((13, 10, 115, 86))}
thumbnails = lambda pictures: np.stack([
    pca_hash.thumbnail(np.asarray(picture)) for picture in pictures])


@pytest.fixture(scope='module')
def hasher():
  return pca_hash.fit(thumbnails(scenes(640, seed=1)))


@pytest.mark.parametrize('name', CHANGES)
def test_what_is_found_and_what_is_not(hasher, name):
  pictures = list(scenes(100))
  before = hasher.bits(thumbnails(pictures))
  after = hasher.bits(thumbnails(map(CHANGES[name], pictures)))
  recall = (np.diag(pca_hash.distances(before, after)) <= 4).mean()
  assert recall == 1 if name in ('jpeg', 'half', 'grey') else recall < 0.1
  apart = pca_hash.distances(before, before)[np.triu_indices(100, 1)]
  assert apart.min() > 4


def test_areas_share_the_pixels_on_their_borders():
  pixels = np.arange(5, dtype=np.uint8)[None, :, None].repeat(3, 0).repeat(3, 2)
  got = pca_hash.thumbnail(pixels, 2)
  np.testing.assert_allclose(got, [[0.8, 3.2], [0.8, 3.2]])


def test_half_of_the_images_have_each_bit(hasher):
  bits = np.unpackbits(hasher.bits(thumbnails(scenes(640, seed=1))), axis=1)
  np.testing.assert_allclose(bits.mean(0), 0.5, atol=1e-9)


def test_blank_images_say_nothing():
  blank = np.full((3, 20, 30, 3), 200, np.uint8)
  blank[1, :10] = 0
  assert pca_hash.is_flat(np.stack([
      pca_hash.thumbnail(x) for x in blank])).tolist() == [True, False, True]


def test_too_few_images_are_a_sentence():
  with pytest.raises(errors.UserError, match='cannot be learned from 9 images'):
    pca_hash.fit(np.zeros((9, 32, 32)), 64)
