"""`dinojax predict` of GeoTIFF: maps at the place of their images."""

import numpy as np
import pytest
import rasterio

from dinojax import commands
from dinojax.evals import stored_heads
from dinojax.runs import raster_predictions
from tests import forked
from tests import rasters
from tests.runs import test_predictions

model = test_predictions.model


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  """A raster of two windows a side, a part of which is unknown."""
  root = tmp_path_factory.mktemp('rasters')
  pixels, _ = rasters.scene(np.random.default_rng(0), (60, 44))
  mask = np.full((60, 44), 255, np.uint8)
  mask[:5] = 0
  rasters.save(root / 'a/north.tif', pixels, mask=mask)
  rasters.save(root / 'south.tif', pixels[:20, :24])
  return root


@pytest.fixture(autouse=True)
def small_windows(monkeypatch):
  monkeypatch.setattr(raster_predictions, 'WINDOW_PX', 32)
  monkeypatch.setattr(raster_predictions, 'MARGIN_PX', 4)


def predict(model, head, source, out, *words):
  return commands.run('predict', [
      f'--model={model}', f'--head={head}', f'--source={source}',
      f'--out={out}', f'--compile_cache={forked.CACHE}', *words])


def head_of(kind, model, folder):
  stored_heads.save(str(folder), test_predictions.made(kind, model))
  return folder


@pytest.mark.parametrize('kind', [
    'segmentation', pytest.param('depth', marks=pytest.mark.slow)])
def test_maps_lie_where_their_images_do(kind, model, folder, tmp_path, capsys,
                                        monkeypatch):
  head, out = head_of(kind, model, tmp_path / 'head'), tmp_path / 'out'
  source = f'geotiff:{folder}'
  # Stopped after the first windows, it goes on with the others.
  whole, made = raster_predictions._whole, []

  def stop(*given):
    made.extend((out / 'work').rglob('*.npy'))
    raise KeyboardInterrupt

  monkeypatch.setattr(raster_predictions, '_whole', stop)
  assert predict(model, head, source, out) != 0
  assert made and not (out / 'rasters').exists()
  monkeypatch.setattr(raster_predictions, '_whole', whole)
  capsys.readouterr()
  assert predict(model, head, source, out) == 0
  assert '2 rasters in' in capsys.readouterr().out
  lines = {row['name']: row for row in test_predictions.lines(out)}
  assert set(lines) == {'a/north', 'south'} and not any(
      (out / 'work').rglob('*.npy'))
  for name, row in lines.items():
    with rasterio.open(folder / f'{name}.tif') as image, rasterio.open(
        out / row['raster']) as got:
      assert (got.crs, got.transform, got.shape) == (
          image.crs, image.transform, image.shape)
      values, valid = got.read(1), image.dataset_mask() > 0
      assert ((got.dataset_mask() > 0) == valid).all()
    assert row['pixels'] == valid.sum() and (out / row['picture']).exists()
    assert abs(row['metres_per_pixel'] - rasters.METRES) < 1e-3
    if kind == 'segmentation':
      assert values.dtype == np.uint8 and set(
          np.unique(values[valid])) <= {0, 1, 2}
      assert abs(sum(row['areas_m2'].values()) - valid.sum() * row[
          'metres_per_pixel']**2) < 1
    else:
      assert np.isnan(values[~valid]).all()
      np.testing.assert_allclose(
          row['mean_m'], values[valid].mean(), rtol=1e-3)
  assert predict(model, head, source, out) == 0
  assert len(test_predictions.lines(out)) == 2


def test_a_damaged_raster_is_a_sentence(model, tmp_path, capsys):
  head = head_of('depth', model, tmp_path / 'head')
  rng = np.random.default_rng(0)
  path = rasters.save(tmp_path / 'x/a.tif', rng.integers(
      0, 256, (60, 44, 3), np.uint8), compress='deflate')
  data = bytearray(path.read_bytes())
  data[2000:2200] = bytes(200)
  path.write_bytes(data)
  assert predict(model, head, f'geotiff:{path}', tmp_path / 'out') == 2
  text = capsys.readouterr().err
  assert 'a.tif is damaged:' in text and 'windows cannot be read' in text


@pytest.mark.parametrize('size, side, margin', [
    ((100, 64), 32, 4), ((32, 20), 32, 4), ((33, 200), 32, 0), ((7, 9), 32, 4)])
def test_the_parts_that_are_kept_cover_a_raster_once(size, side, margin):
  seen = np.zeros(size[::-1], int)
  for piece in raster_predictions.pieces(size, side, margin):
    left, top, right, bottom = piece.window
    assert (right - left, bottom - top) == tuple(min(side, n) for n in size)
    seen[piece.kept[1]:piece.kept[3], piece.kept[0]:piece.kept[2]] += 1
    for i, length in ((0, size[0]), (1, size[1])):
      low, high = piece.kept[i], piece.kept[i + 2]
      start, end = piece.window[i], piece.window[i + 2]
      assert low - start >= margin or low == 0
      assert end - high >= margin or high == length
  assert (seen == 1).all()


def test_what_has_no_place_ends_before_work(model, folder, tmp_path, capsys):
  head = head_of('depth', model, tmp_path / 'head')
  rasters.save(tmp_path / 'x/a.tif', np.zeros((8, 8, 3), np.uint8), crs=None)
  boxes = head_of('detector', model, tmp_path / 'boxes')
  for some, source, text in (
      (head, f'geotiff:{tmp_path}/x', 'a.tif has no coordinates'),
      (head, f'geotiff:{tmp_path}/none', 'has no file that ends in .tif'),
      (boxes, f'geotiff:{folder}', 'and this head makes boxes')):
    assert predict(model, some, source, tmp_path / 'out') == 2
    assert text in capsys.readouterr().err
  assert not (tmp_path / 'out/predictions.jsonl').exists()
