"""GeoTIFF: images and maps with a place on the earth.

rasterio reads and writes them, which is an extra. Nothing but GeoTIFF is
opened: other formats of the library may name files elsewhere.
"""

from collections.abc import Iterator
import contextlib
import dataclasses
import math
from typing import Any
import warnings

from etils import epath
import numpy as np

from dinojax.core import atomic
from dinojax.core import errors
from dinojax.data import images

SUFFIXES = ('.tif', '.tiff')
_NEEDS = 'GeoTIFF needs rasterio: pip install "dinojax[geo]"'
_DRIVER = 'GTiff'
_BLOCK_PX = 256  # of tiles in files that are written
_RADIUS_M = 6_371_008.8  # mean radius of the earth
Window = tuple[int, int, int, int]  # left, top, right, bottom, in pixels


@dataclasses.dataclass(frozen=True)
class Header:
  """Size, bands and place of a raster.

  Attributes:
    size: (width, height) in pixels.
    bands: number of bands.
    dtype: type of their values.
    crs: reference system, as WKT; '': none.
    transform: six numbers (a, b, c, d, e, f) from column and row to a place;
      the identity: none.
    metres: side of a pixel on the ground, in its middle; 0 without a place.
  """

  size: tuple[int, int]
  bands: int
  dtype: str
  crs: str
  transform: tuple[float, ...]
  metres: float

  @property
  def has_place(self) -> bool:
    """True: pixels have coordinates."""
    return bool(self.crs) and self.metres > 0


def is_raster(name: str) -> bool:
  """Tells whether a file is a TIFF by its name."""
  return name.lower().endswith(SUFFIXES)


def library() -> Any:
  """The module rasterio.

  Raises:
    UserError: it is not installed.
  """
  try:
    import rasterio
    import rasterio.windows
  except ImportError as error:
    raise errors.UserError(_NEEDS) from error
  # Whether a file has a place is asked for, see `check_place`.
  warnings.filterwarnings(
      'ignore', category=rasterio.errors.NotGeoreferencedWarning)
  return rasterio


@contextlib.contextmanager
def opened(path: str) -> Iterator[Any]:
  """A raster of the library, to be read.

  Raises:
    UserError: it is not there, or no GeoTIFF.
  """
  rasterio = library()
  if not epath.Path(path).exists():
    raise errors.UserError(f'{path} is missing: check the path')
  with rasterio.Env(GDAL_DISABLE_READDIR_ON_OPEN='EMPTY_DIR'):
    try:
      raster = rasterio.open(path, driver=_DRIVER)
    except rasterio.errors.RasterioError as error:
      raise errors.UserError(
          f'{path} cannot be read as GeoTIFF: {str(error).splitlines()[0]}'
      ) from error
    with raster:
      yield raster


def header(path: str) -> Header:
  """Size, bands and place of a raster.

  Raises:
    UserError: see `opened`.
  """
  with opened(path) as raster:
    return of_raster(raster)


def of_raster(raster: Any) -> Header:
  """`header` of one that is open."""
  placed = raster.crs is not None and not raster.transform.is_identity
  return Header(
      (raster.width, raster.height), raster.count, raster.dtypes[0],
      raster.crs.to_wkt() if placed else '', tuple(raster.transform)[:6],
      _metres(raster) if placed else 0.0)


def check_place(path: str, of: Header):
  """Refuses a raster without coordinates.

  Raises:
    UserError: it has none.
  """
  if not of.has_place:
    raise errors.UserError(
        f'{path} has no coordinates: a map of it would lie nowhere; give the '
        'GeoTIFF as it was delivered, or its folder as folder:DIR for maps '
        'without a place')


def _metres(raster: Any) -> float:
  """Side of the pixel in the middle on the ground: root of its area."""
  from rasterio import warp
  middle = raster.height / 2, raster.width / 2
  corners = [raster.transform * (middle[1] + x, middle[0] + y)
             for x, y in ((0, 0), (1, 0), (0, 1))]
  longitude, latitude = warp.transform(
      raster.crs, 'EPSG:4326', *zip(*corners, strict=True))
  east = math.radians(1) * _RADIUS_M * math.cos(math.radians(latitude[0]))
  north = math.radians(1) * _RADIUS_M
  away = [((longitude[i] - longitude[0]) * east,
           (latitude[i] - latitude[0]) * north) for i in (1, 2)]
  return math.sqrt(abs(away[0][0] * away[1][1] - away[0][1] * away[1][0]))


def rgb(raster: Any, window: Window, value_range: tuple[float, ...] = (),
        shape: tuple[int, int] | None = None) -> np.ndarray:
  """[y, x, 3] uint8 pixels of a window.

  Args:
    raster: an open one, of three bands and more, or of one, which is grey.
    window: part that is read.
    value_range: black and white of bands of more than 8 bits.
    shape: rows and columns of the result; None: those of the window.

  Raises:
    UserError: two bands, or deep ones without a range.
    BadImage: damaged.
  """
  if raster.count == 2:
    raise errors.UserError(
        f'{raster.name} has two bands: give red, green and blue, or one grey')
  left, top, right, bottom = window
  _check_pixels(*(shape or (bottom - top, right - left)))
  bands = (1, 2, 3) if raster.count >= 3 else (1,)
  with images.Decoding(0):
    values = raster.read(bands, window=_part(window), out_shape=(
        None if shape is None else (len(bands), *shape)))
  if values.dtype != np.uint8:
    if not value_range:
      raise errors.UserError(
          f'{raster.name} has bands of {values.dtype}, and this model does not '
          'say which values are black and white: convert it to 8 bits, as its '
          'training images were')
    black, white = value_range
    values = (np.nan_to_num(values.astype(np.float32)) - black) * (
        255 / (white - black))
    values = np.rint(np.clip(values, 0, 255)).astype(np.uint8)
  pixels = np.moveaxis(values, 0, -1)
  return np.repeat(pixels, 3, axis=2) if pixels.shape[2] == 1 else pixels


def known(raster: Any, window: Window) -> np.ndarray:
  """[y, x] bool: pixels of a window that the raster has values for."""
  with images.Decoding(0):
    return raster.dataset_mask(window=_part(window)) > 0


def values(path: str) -> tuple[np.ndarray, Header]:
  """[y, x] float32 of the first band, NaN where it has none, and the header.

  Raises:
    UserError: see `opened`.
    BadImage: damaged.
  """
  with opened(path) as raster:
    _check_pixels(raster.height, raster.width)
    with images.Decoding(raster.width * raster.height * 8):
      out = raster.read(1, masked=True).astype(np.float32).filled(np.nan)
    return out, of_raster(raster)


@contextlib.contextmanager
def written(path: str, of: Header, dtype: str, nodata: float
            ) -> Iterator[Any]:
  """A new raster of one band at the place of another, to be filled.

  At the end of the `with` it is there, whole.

  Args:
    path: file that is written.
    of: header of the other.
    dtype: type of the values.
    nodata: value of pixels that have none.
  """
  rasterio = library()
  with atomic.replacing(path) as temporary, rasterio.open(
      str(temporary), 'w', driver=_DRIVER, width=of.size[0],
      height=of.size[1], count=1, dtype=dtype, crs=of.crs,
      transform=rasterio.Affine(*of.transform), nodata=nodata, tiled=True,
      blockxsize=_BLOCK_PX, blockysize=_BLOCK_PX, compress='deflate',
      predictor=3 if dtype.startswith('float') else 2,
      bigtiff='if_safer') as raster:
    yield raster


def put(raster: Any, window: Window, pixels: np.ndarray):
  """Writes [y, x] values into a window of a new raster."""
  raster.write(pixels, 1, window=_part(window))


def small(path: str, most_px: int, value_range: tuple[float, ...] = ()
          ) -> tuple[np.ndarray, np.ndarray]:
  """A raster at a smaller size, to look at: [y, x, 3] uint8 and [y, x] bool.

  Args:
    path: its file.
    most_px: length of the long side.
    value_range: see `rgb`.

  Returns:
    Pixels, and which of them the raster has values for.
  """
  with opened(path) as raster:
    factor = min(most_px / max(raster.width, raster.height), 1)
    shape = tuple(max(round(n * factor), 1)
                  for n in (raster.height, raster.width))
    whole = 0, 0, raster.width, raster.height
    pixels = rgb(raster, whole, value_range, shape)
    with images.Decoding(0):
      return pixels, raster.dataset_mask(out_shape=shape) > 0


def _check_pixels(rows: int, columns: int):
  """Refuses to bring more than an image may have into memory.

  Raises:
    BadImage: more.
  """
  if rows * columns > images.DEFAULT_MAX_PIXELS:
    raise images.BadImage(
        f'{columns} × {rows} pixels are more than '
        f'{images.DEFAULT_MAX_PIXELS} at once: cut it into tiles')


def _part(window: Window) -> Any:
  left, top, right, bottom = window
  return library().windows.Window(left, top, right - left, bottom - top)
