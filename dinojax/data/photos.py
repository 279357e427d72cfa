"""The embedded default: tiles of photographs that Python wheels carry.

Label = photograph. Each photograph is cut once: tiles of its left part train,
tiles of its right part validate, and a strip of at least one tile lies
between, so that no pixel of one side is near the other.
"""

import functools
import io
import os

import numpy as np
from PIL import Image

from dinojax.core import errors
from dinojax.data import record as record_lib

TILE_PX = 64
STRIDE_PX = 16
_SHORT_SIDE_PX = 384  # photographs are reduced to this before cutting
_TRAIN_SHARE = 0.62
_MAX_TRAIN = 160  # tiles of one photograph
_MAX_VALIDATION = 40

# (package, file); licences: scikit-image's data/README.txt (public domain or
# CC0 unless noted), scikit-learn's images/README.txt (CC BY 2.0).
PHOTOS = (
    ('skimage', 'data/astronaut.png'),  # NASA, public domain
    ('skimage', 'data/brick.png'),  # CC0
    ('skimage', 'data/camera.png'),  # CC0
    ('skimage', 'data/chelsea.png'),  # CC0
    ('skimage', 'data/coffee.png'),  # CC0
    ('skimage', 'data/coins.png'),  # Brooklyn Museum, no known restrictions
    ('skimage', 'data/grass.png'),  # CC0
    ('skimage', 'data/gravel.png'),  # CC0
    ('skimage', 'data/hubble_deep_field.jpg'),  # NASA/ESA, public domain
    ('skimage', 'data/ihc.png'),  # no known restrictions
    ('skimage', 'data/moon.png'),  # NASA, public domain
    ('skimage', 'data/motorcycle_left.png'),  # CC0, Middlebury 2014
    ('skimage', 'data/retina.jpg'),  # CC0
    ('skimage', 'data/rocket.jpg'),  # SpaceX, CC0
    ('sklearn', 'datasets/images/china.jpg'),  # CC BY 2.0
    ('sklearn', 'datasets/images/flower.jpg'),  # CC BY 2.0
)


def _load(package: str, path: str) -> Image.Image:
  """A photograph, RGB, reduced so that its short side fits."""
  import importlib.util
  module_spec = importlib.util.find_spec(package)
  if module_spec is None:
    raise errors.UserError(
        f'the embedded photographs need the package {package}: install them '
        'with `pip install "dinojax[demo]"`, or set data.train=folder:DIR')
  folder = module_spec.submodule_search_locations[0]
  image = Image.open(os.path.join(folder, path)).convert('RGB')
  scale = _SHORT_SIDE_PX / min(image.size)
  if scale < 1:
    size = tuple(round(n * scale) for n in image.size)
    image = image.resize(size, Image.Resampling.LANCZOS)
  return image


def corners(size: tuple[int, int], split: str) -> list[tuple[int, int]]:
  """(left, top) of every tile of a photograph, in reading order.

  Args:
    size: (width, height).
    split: 'train' or 'validation'.
  """
  width, height = size
  border = int((width - TILE_PX) * _TRAIN_SHARE)
  if split == 'train':
    lefts = range(0, border - TILE_PX + 1, STRIDE_PX)
    limit = _MAX_TRAIN
  else:
    lefts = range(border + TILE_PX, width - TILE_PX + 1, STRIDE_PX // 2)
    limit = _MAX_VALIDATION
  tops = range(0, height - TILE_PX + 1, STRIDE_PX)
  every = [(left, top) for top in tops for left in lefts]
  # Evenly spread over the region when there are more than the limit.
  take = np.linspace(0, len(every) - 1, min(limit, len(every)))
  return [every[int(i)] for i in np.round(take)]


@functools.cache
def _tiles(split: str) -> tuple[tuple[bytes, int, str], ...]:
  """(PNG bytes, label, name) of every tile."""
  tiles = []
  for label, (package, path) in enumerate(PHOTOS):
    photo = _load(package, path)
    name = os.path.splitext(os.path.basename(path))[0]
    for left, top in corners(photo.size, split):
      tile = photo.crop((left, top, left + TILE_PX, top + TILE_PX))
      data = io.BytesIO()
      tile.save(data, 'PNG', compress_level=1)
      tiles.append((data.getvalue(), label, f'{name}/{left}-{top}'))
  return tuple(tiles)


class Photos:
  """Tiles of one split."""

  def __init__(self, split: str):
    """Opens 'train' or 'validation'.

    Raises:
      UserError: unknown split, or the photographs are not installed.
    """
    if split not in ('train', 'validation'):
      raise errors.UserError(
          f'photos:{split} is not known: use photos:train or '
          'photos:validation')
    self.spec, self._split = f'photos:{split}', split
    self.classes = tuple(
        os.path.splitext(os.path.basename(path))[0] for _, path in PHOTOS)
    self._length = len(_tiles(split))

  def __len__(self) -> int:
    return self._length

  def __getitem__(self, index: int) -> record_lib.Record:
    return record_lib.Record(*_tiles(self._split)[index])

  def order(self, sizes: bool = False) -> list[str]:
    """Names in order, with the sizes of the files."""
    return [f'{name}\t{len(data)}' if sizes else name
            for data, _, name in _tiles(self._split)]

  def labels(self) -> list[int]:
    """Photographs of the tiles in order."""
    return [label for _, label, _ in _tiles(self._split)]

  def class_counts(self) -> list[int]:
    """Number of tiles of each photograph."""
    return np.bincount(self.labels(), minlength=len(self.classes)).tolist()


def photograph(name: str) -> np.ndarray:
  """A whole photograph by name, [y, x, c] uint8."""
  for package, path in PHOTOS:
    if os.path.splitext(os.path.basename(path))[0] == name:
      return np.asarray(_load(package, path))
  raise ValueError(f'no embedded photograph {name!r}')


def held_out(name: str) -> np.ndarray:
  """The largest square of a photograph that no training tile is near."""
  photo = photograph(name)
  left = min(x for x, _ in corners(photo.shape[1::-1], 'validation'))
  side = min(photo.shape[1] - left, photo.shape[0])
  top = (photo.shape[0] - side) // 2
  return photo[top:top + side, left:left + side]
