"""Images with a height of every pixel: `heights:DIR`.

DIR/images and DIR/heights hold files of the same stems. Heights are GeoTIFF in
metres, or 16-bit PNG with `?scale=0.01`, of which 65535 is unknown; the ground
is 0. A pixel's side is in the GeoTIFF, or given by `?metres=0.6`.
"""

import dataclasses
import io
from typing import Any

from etils import epath
import numpy as np
from PIL import Image

from dinojax.core import errors
from dinojax.data import images
from dinojax.data import rasters
from dinojax.evals.sets import dense

EXAMPLE = 'heights:DIR with DIR/images and DIR/heights'
_PLAIN = ('images stand in a folder images, and heights of the same names in a '
          'folder heights beside it')
_UNKNOWN = 65_535
# Ground is this high, so that it is told from what is unknown, which is 0.
GROUND_M = 1e-3


@dataclasses.dataclass(frozen=True)
class Pair:
  """An image and its heights.

  Attributes:
    image_path: file of the image.
    truth_path: file of the heights.
    name: stable identity within the set.
    scale: metres of a unit, of heights that are no GeoTIFF.
  """

  image_path: str
  truth_path: str
  name: str
  scale: float | None
  cut: None = None

  @property
  def where(self) -> str:
    """Place of the heights, for messages."""
    return self.truth_path

  def sizes(self) -> tuple[tuple[int, int], tuple[int, int]]:
    """(width, height) of the image, and of the heights."""
    return _size(self.image_path), _size(self.truth_path)

  def map(self) -> np.ndarray:
    """[y, x] float32 metres, GROUND_M or more, 0 where unknown.

    Raises:
      BadImage: they cannot be decoded.
      UserError: colours.
    """
    if rasters.is_raster(self.truth_path):
      out, _ = rasters.values(self.truth_path)
    else:
      data = epath.Path(self.truth_path).read_bytes()
      with images.Decoding(len(data)), Image.open(
          io.BytesIO(data)) as picture:
        units = np.asarray(picture)
      if units.ndim != 2:
        raise errors.UserError(
            f'{self.truth_path} has colours where heights are due: store '
            '16-bit PNG, or GeoTIFF of metres')
      out = np.where(units == _UNKNOWN, np.nan, units * np.float32(self.scale))
    known = np.isfinite(out)
    return np.where(known, np.maximum(out, GROUND_M), 0).astype(np.float32)

  def decoded(self) -> tuple[Image.Image, np.ndarray]:
    """Image and heights.

    Raises:
      BadImage: a file that cannot be decoded.
      UserError: heights of another size than their image.
    """
    truth = self.map()
    if rasters.is_raster(self.image_path):
      with rasters.opened(self.image_path) as raster:
        picture = Image.fromarray(rasters.rgb(
            raster, (0, 0, raster.width, raster.height)))
    else:
      picture = images.open_image(
          epath.Path(self.image_path).read_bytes()).decode()
    dense.check_sizes(self, picture.size, truth.shape[::-1])
    return picture, truth

  def metres(self) -> float:
    """Side of a pixel on the ground; 0: the files do not say it."""
    for path in (self.truth_path, self.image_path):
      if rasters.is_raster(path):
        side = rasters.header(path).metres
        if side:
          return side
    return 0.0


class Set(dense.Set):
  """Images with heights, in the order of their names."""

  def __init__(self, spec: str, files: Any, scale: float | None,
               metres: float | None):
    """Keeps the paths.

    Args:
      spec: how the set was asked for, for messages.
      files: (image, heights, name) of each.
      scale: see Pair.
      metres: side of a pixel of all images; None: files say it.
    """
    super().__init__(spec, files, dense.Metres(scale))
    self._scale, self._metres = scale, metres

  def __getitem__(self, index: int) -> Pair:
    image, truth, name = self._files[index]
    return Pair(image, truth, name, self._scale)

  def metres(self, index: int) -> float:
    """Side of a pixel of an image on the ground.

    Raises:
      UserError: nothing says it.
    """
    side = self._metres or self[index].metres()
    if not side:
      raise errors.UserError(
          f'{self.spec}: {self[index].truth_path} has no coordinates, which '
          f'would say how large a pixel is: give {self.spec}?metres=0.6')
    return side


def opened(spec: str) -> Set:
  """The set of a spec, see the module.

  Raises:
    UserError: another spec, or files that are missing.
  """
  if not spec.startswith('heights:'):
    raise errors.UserError(
        f'{spec!r} is no set of images with heights: give {EXAMPLE}')
  folder, given = dense.options(spec, 'heights', scale='', metres='')
  for part in ('images', 'heights'):
    dense.need(spec, f'{folder}/{part}', _PLAIN)
  scale, metres = (_number(spec, name, given[name])
                   for name in ('scale', 'metres'))
  files = dense.pairs_by_stem(
      spec, f'{folder}/images', f'{folder}/heights')
  plain = [truth for _, truth, _ in files if not rasters.is_raster(truth)]
  if plain and scale is None:
    raise errors.UserError(
        f'{spec}: {plain[0]} is no GeoTIFF of metres: give the metres of a '
        f'unit, {spec}?scale=0.01')
  if any(rasters.is_raster(path) for row in files for path in row[:2]):
    rasters.library()
  return Set(spec, files, scale, metres)


def _number(spec: str, name: str, text: str) -> float | None:
  if not text:
    return None
  try:
    value = float(text)
  except ValueError:
    value = -1.0
  if not value > 0:
    raise errors.UserError(
        f'{spec}: {name}={text} is no number above 0: give metres')
  return value


def _size(path: str) -> tuple[int, int]:
  if rasters.is_raster(path):
    return rasters.header(path).size
  return images.open_image(epath.Path(path).read_bytes()).size
