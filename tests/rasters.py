"""Small GeoTIFF of drawn canopies."""

import numpy as np
import rasterio
from rasterio import transform

UTM = 'EPSG:32633'
METRES = 0.5


def save(path, values, *, crs=UTM, metres=METRES, nodata=None, mask=None,
         **options):
  """Writes [y, x] or [y, x, c] values at a place on the earth."""
  path.parent.mkdir(parents=True, exist_ok=True)
  bands = values[None] if values.ndim == 2 else np.moveaxis(values, -1, 0)
  place = {} if crs is None else {
      'crs': crs, 'transform': transform.from_origin(
          500_000, 5_000_000, metres, metres)}
  with rasterio.open(
      path, 'w', driver='GTiff', height=bands.shape[1], width=bands.shape[2],
      count=len(bands), dtype=bands.dtype, nodata=nodata, **place,
      **options) as raster:
    raster.write(bands)
    if mask is not None:
      raster.write_mask(mask)
  return path


def scene(rng, size):
  """An image [y, x, 3] of crowns, the higher the greener, and their heights."""
  rows, columns = size
  y, x = np.mgrid[:rows, :columns]
  heights = np.zeros(size, np.float32)
  for _ in range(rows * columns // 150):
    top, left = rng.integers(0, rows), rng.integers(0, columns)
    radius, height = rng.uniform(3, 8), rng.uniform(4, 30)
    away = np.hypot(y - top, x - left) / radius
    heights = np.maximum(heights, np.where(away < 1, height * (
        1 - away**2), 0)).astype(np.float32)
  share = (heights / 30)[..., None]
  colors = (1 - share) * [150, 130, 90] + share * [20, 110, 30]
  pixels = colors + rng.normal(0, 4, (rows, columns, 3))
  return np.clip(pixels, 0, 255).astype(np.uint8), heights


def save_set(folder, count, size, seed):
  """Writes images/ and heights/, a part of which is unknown."""
  rng = np.random.default_rng(seed)
  for i in range(count):
    pixels, heights = scene(rng, size)
    heights[:2] = -1
    save(folder / f'images/{i:02d}.tif', pixels)
    save(folder / f'heights/{i:02d}.tif', heights, nodata=-1)
  return folder
