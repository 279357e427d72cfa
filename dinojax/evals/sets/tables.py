"""Lists and CSV tables of sets, as files, and images beside them."""

from collections.abc import Sequence
import csv
import math

from etils import epath
import numpy as np
from PIL import Image

from dinojax.core import errors
from dinojax.core import paths
from dinojax.data import images

Row = dict[str, str]


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


def lines(path: epath.Path, where: str) -> list[str]:
  """Lines of a list that are not blank, whatever ends them.

  Args:
    path: the file.
    where: place where the set is had, for messages.

  Raises:
    UserError: it is not there.
  """
  return [line.strip() for line in text(path, where).splitlines()
          if line.strip()]


def text(path: epath.Path, where: str) -> str:
  """The text of a file, without a byte order mark.

  Raises:
    UserError: it is not there, or no text.
  """
  try:
    return path.read_bytes().decode('utf-8-sig')
  except FileNotFoundError as error:
    raise errors.UserError(f'{path} is missing: {where}') from error
  except (OSError, UnicodeDecodeError) as error:
    raise errors.UserError(f'{path} cannot be read: {error}') from error


def rows(path: epath.Path, columns: Sequence[str]) -> list[Row]:
  """Rows of a CSV file whose first line names its columns.

  Args:
    path: the file.
    columns: names that must be there.

  Raises:
    UserError: no such file or column, or no rows.
  """
  content = text(path, 'give the CSV file itself')
  table = csv.DictReader(content.splitlines())
  missing = [name for name in columns if name not in (table.fieldnames or ())]
  if missing:
    raise errors.UserError(
        f'{path} has no column {", ".join(missing)}: its first line must name '
        f'{",".join(columns)}')
  out = [row for row in table if any(row.values())]
  if not out:
    raise errors.UserError(f'{path} has no rows below its first line')
  return out


def numbers(row: Row, columns: Sequence[str], path: epath.Path,
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
