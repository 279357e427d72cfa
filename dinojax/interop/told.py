"""Values of a JSON file beside weights, each checked when it is used."""

from collections.abc import Iterator, Mapping, Sequence
import json
import math
import pathlib
from typing import Any

from dinojax.core import errors

_MAX_BYTES = 64 * 2**20  # an index of the largest models has about one
_NEEDED = object()


def text(value: Any) -> str:
  """A value as a message shows it."""
  shown = repr(value)
  return shown if len(shown) <= 60 else f'{shown[:57]}…'


class Told:
  """The values of one JSON object.

  Every method raises a UserError with the file, the key and the value where
  this is not what it should be.
  """

  def __init__(self, values: Any, source: str):
    """Takes what was in `source`, a file for messages."""
    self.source = source
    if not isinstance(values, Mapping):
      raise errors.UserError(
          f'{source} holds {text(values)}, and should be a JSON object '
          '({"key": value, …}); get it again')
    self._values = values

  @classmethod
  def read(cls, path: pathlib.Path) -> 'Told':
    """The object in a file."""
    try:
      if path.stat().st_size > _MAX_BYTES:
        raise errors.UserError(
            f'{path} has {path.stat().st_size} bytes, too many for what it '
            'should say; get it again')
      values = json.loads(path.read_bytes())
    except errors.UserError:
      raise
    except OSError as error:
      raise errors.UserError(
          f'{path} cannot be read: {error.strerror or error}') from error
    except (ValueError, RecursionError) as error:
      raise errors.UserError(
          f'{path} is not JSON ({error}): it is damaged or cut short; get it '
          'again') from error
    return cls(values, str(path))

  @classmethod
  def beside(cls, path: str, name: str) -> 'Told | None':
    """A file in the folder of a model, or of its weights; None: not there."""
    place = pathlib.Path(path)
    file = (place if place.is_dir() else place.parent) / name
    return cls.read(file) if file.exists() else None

  def __iter__(self) -> Iterator[str]:
    return iter(self._values)

  def __contains__(self, key: str) -> bool:
    return key in self._values

  def get(self, key: str, default: Any = _NEEDED) -> Any:
    """The value as it is."""
    if key in self._values:
      return self._values[key]
    if default is _NEEDED:
      raise errors.UserError(
          f'{self.source} lacks {key}: get the file again, whole')
    return default

  def _wrong(self, key: str, wanted: str) -> errors.UserError:
    return errors.UserError(
        f'{self.source}: {key}={text(self._values[key])} is not {wanted}')

  def whole(self, key: str, default: Any = _NEEDED, *, low: int = 1,
            high: int = 2**20) -> int:
    """An integer between two bounds, both included."""
    value = self.get(key, default)
    if key in self._values and not (
        type(value) is int and low <= value <= high):
      raise self._wrong(key, f'a whole number from {low} to {high}')
    return value

  def number(self, key: str, default: Any = _NEEDED) -> float:
    """A positive finite number; None where that is the default."""
    value = self.get(key, default)
    if key not in self._values or value is None and default is None:
      return default
    if type(value) not in (int, float) or not (
        0 < value < 1e30 and math.isfinite(value)):
      raise self._wrong(key, 'a positive number')
    return float(value)

  def flag(self, key: str, default: Any = _NEEDED) -> bool:
    """True or false."""
    value = self.get(key, default)
    if key in self._values and type(value) is not bool:
      raise self._wrong(key, 'true or false')
    return value

  def name(self, key: str, known: Sequence[str]) -> str:
    """One of several words."""
    value = self.get(key)
    if value not in tuple(known):
      raise self._wrong(key, f'known: use one of {", ".join(known)}')
    return value

  def wholes(self, key: str, count: int) -> tuple[int, ...]:
    """So many positive integers."""
    value = self.get(key)
    if not isinstance(value, list) or len(value) != count or not all(
        type(x) is int and 1 <= x <= 2**20 for x in value):
      raise self._wrong(key, f'a list of {count} positive whole numbers')
    return tuple(value)

  def numbers(self, key: str, default: Any = _NEEDED, *,
              positive: bool = False) -> tuple[float, ...]:
    """One to 64 finite numbers."""
    value = self.get(key, default)
    if key not in self._values:
      return default
    if not isinstance(value, list) or not 1 <= len(value) <= 64 or not all(
        type(x) in (int, float) and abs(x) < 1e30 and math.isfinite(x)
        and not (positive and x <= 0) for x in value):
      raise self._wrong(
          key, f'a list of {"positive " if positive else ""}numbers')
    return tuple(map(float, value))

  def side(self, key: str, default: Any = _NEEDED) -> tuple[int, int]:
    """(height, width), written as a pair or as one number for both."""
    value = self.get(key, default)
    if isinstance(value, list) and len(value) == 2:
      return self.wholes(key, 2)
    side = self.whole(key, default)
    return side, side

  def over(self, usual: Mapping[str, Any]) -> 'Told':
    """The same values, and others where there are none."""
    return Told({**usual, **self._values}, self.source)

  def inner(self, key: str) -> 'Told':
    """The object under a key."""
    return Told(self.get(key), f'{self.source}: {key}')
