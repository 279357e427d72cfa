"""GeoTIFF: places, bands, what has no value, and files that are none."""

import builtins

import numpy as np
import pytest

from dinojax.core import errors
from dinojax.data import rasters
from tests import rasters as made


def read(path, **values):
  with rasters.opened(str(path)) as raster:
    return rasters.rgb(raster, (0, 0, raster.width, raster.height), **values)


@pytest.mark.parametrize('crs, metres, want', [
    ('EPSG:32633', 0.5, 0.5),
    # Mercator at this northing is at 40.9° north, and wider than the ground.
    ('EPSG:3857', 1.0, np.cos(np.radians(40.92)))])
def test_a_pixel_has_its_size_on_the_ground(crs, metres, want, tmp_path):
  path = made.save(tmp_path / 'a.tif', np.zeros((20, 30, 3), np.uint8),
                   crs=crs, metres=metres)
  got = rasters.header(str(path))
  assert (got.size, got.bands, got.dtype) == ((30, 20), 3, 'uint8')
  assert got.has_place
  np.testing.assert_allclose(got.metres, want, rtol=5e-3)


def test_bands_become_pixels(tmp_path):
  rng = np.random.default_rng(0)
  four = rng.integers(0, 256, (6, 8, 4), np.uint8)
  np.testing.assert_array_equal(
      read(made.save(tmp_path / 'four.tif', four)), four[..., :3])
  grey = made.save(tmp_path / 'grey.tif', four[..., 0])
  np.testing.assert_array_equal(
      read(grey), np.repeat(four[..., :1], 3, axis=-1))
  deep = made.save(tmp_path / 'deep.tif', np.uint16(
      [[0, 1000], [2000, 4000]])[..., None].repeat(3, -1))
  np.testing.assert_array_equal(
      read(deep, value_range=(0.0, 2000.0))[..., 0], [[0, 128], [255, 255]])
  with pytest.raises(errors.UserError, match='deep.tif has bands of uint16'):
    read(deep)
  with pytest.raises(errors.UserError, match='two.tif has two bands'):
    read(made.save(tmp_path / 'two.tif', four[..., :2]))


def test_a_raster_without_coordinates_is_a_sentence(tmp_path):
  path = made.save(tmp_path / 'a.tif', np.zeros((4, 4, 3), np.uint8), crs=None)
  of = rasters.header(str(path))
  assert not of.has_place and of.metres == 0
  with pytest.raises(errors.UserError, match='a.tif has no coordinates: a map '
                     'of it would lie nowhere; give the GeoTIFF'):
    rasters.check_place(str(path), of)


def test_other_files_are_sentences(tmp_path):
  with pytest.raises(errors.UserError, match='no.tif is missing'):
    rasters.header(str(tmp_path / 'no.tif'))
  (tmp_path / 'bad.tif').write_bytes(b'no raster')
  with pytest.raises(errors.UserError, match='bad.tif cannot be read as GeoT'):
    rasters.header(str(tmp_path / 'bad.tif'))
  # A list of other files is no GeoTIFF, whatever it is called.
  (tmp_path / 'list.tif').write_text(
      '<VRTDataset rasterXSize="1" rasterYSize="1"></VRTDataset>')
  with pytest.raises(errors.UserError, match='list.tif cannot be read as Geo'):
    rasters.header(str(tmp_path / 'list.tif'))


def test_a_new_raster_lies_where_the_other_does(tmp_path):
  path = made.save(tmp_path / 'a.tif', np.zeros((40, 30, 3), np.uint8))
  of, values = rasters.header(str(path)), np.float32(
      np.random.default_rng(0).normal(size=(40, 30)))
  values[3, 4] = np.nan
  with rasters.written(
      str(tmp_path / 'b.tif'), of, 'float32', float('nan')) as raster:
    rasters.put(raster, (0, 0, 30, 25), values[:25])
    rasters.put(raster, (0, 25, 30, 40), values[25:])
  got, header = rasters.values(str(tmp_path / 'b.tif'))
  np.testing.assert_array_equal(got, values)
  assert (header.crs, header.transform, header.size) == (
      of.crs, of.transform, of.size)


def test_rasterio_is_an_extra(tmp_path, monkeypatch):
  real = builtins.__import__

  def lacking(name, *rest):
    if name.startswith('rasterio'):
      raise ImportError(name)
    return real(name, *rest)

  monkeypatch.setattr(builtins, '__import__', lacking)
  with pytest.raises(errors.UserError, match=r'pip install "dinojax\[geo\]"'):
    rasters.header(str(tmp_path / 'a.tif'))
