"""Lists and CSV tables of sets, as files, and images beside them."""

from collections.abc import Sequence
import math

from etils import epath
import numpy as np
from PIL import Image

from dinojax.core import errors
from dinojax.core import lists
from dinojax.core import paths
from dinojax.data import images


def folder(spec: str, scheme: str, example: str) -> epath.Path:
  """The folder, or file, that a spec SCHEME:PATH names.

  Raises:
    UserError: another scheme, or nothing there.
  """
  head, _, rest = spec.partition(':')
  path = epath.Path(paths.expand(rest)) if head == scheme and rest else None
  if path is None or not path.exists():
    raise errors.UserError(
        f'{spec} is not there: give {example}' if path is not None else
        f'{spec!r} is no such set: give {example}')
  return path


def numbers(row: lists.Row, columns: Sequence[str], path: epath.Path,
            line: int) -> np.ndarray:
  """Finite numbers of a row, float64.

  Raises:
    UserError: a field that is no number.
  """
  out = []
  for name in columns:
    try:
      value = float(row[name])
    except (TypeError, ValueError):
      value = math.nan
    if not math.isfinite(value):
      raise errors.UserError(
          f'{path}, row {line}: {name}={row[name]!r} is no number: correct '
          'it, or remove the row')
    out.append(value)
  return np.array(out)


def size(path: epath.Path, where: str) -> tuple[int, int]:
  """(width, height) of an image as it is read, upright.

  Raises:
    UserError: it is not there, or no image.
  """
  return opened(path, where).size


def opened(path: epath.Path, where: str) -> images.Image:
  """An image whose pixels are not decoded yet.

  Raises:
    UserError: it is not there, or no image.
  """
  try:
    return images.open_image(path.read_bytes())
  except FileNotFoundError as error:
    raise errors.UserError(f'{path} is missing: {where}') from error
  except (images.BadImage, OSError) as error:
    raise errors.UserError(f'{path} cannot be read: {error}') from error


def pixels(path: epath.Path, where: str) -> Image.Image:
  """An image as RGB, upright.

  Raises:
    UserError: see `opened`; or it is damaged.
  """
  try:
    return opened(path, where).decode()
  except images.BadImage as error:
    raise errors.UserError(f'{path} cannot be read: {error}') from error


def indices(path: epath.Path, where: str) -> np.ndarray:
  """[y, x] int32 numbers as a PNG stores them: of a palette, its indices.

  Raises:
    UserError: it is not there, or has colours in place of numbers.
  """
  try:
    with path.open('rb') as file:
      picture = Image.open(file)
      picture.load()
  except FileNotFoundError as error:
    raise errors.UserError(f'{path} is missing: {where}') from error
  except (OSError, ValueError, SyntaxError,
          Image.DecompressionBombError) as error:
    raise errors.UserError(f'{path} cannot be read: {error}') from error
  if picture.mode not in ('P', 'L', '1', 'I', 'I;16', 'I;16B'):
    raise errors.UserError(
        f'{path} has colours ({picture.mode}) where a number for every pixel '
        'is due: save it as a palette or grey PNG')
  out = np.asarray(picture)
  return out.astype(np.int32)
