"""ConfigDict in, frozen dataclasses out, every mistake named at once.

The only module that knows ml_collections. A section of a config is a frozen
dataclass whose field names are the keys; `section` builds it and collects
errors. Fields are `result` (change what is learned) unless marked `free`.
"""

from collections.abc import Iterable, Iterator, Mapping
import contextlib
import dataclasses
import difflib
import functools
import numbers
import sys
import types
import typing
from typing import Any

from ml_collections import config_dict

from dinojax.core import errors
from dinojax.core import fields

free = fields.free
UNITS = ('steps', 'epochs', 'images')
# More than anybody trains, and few enough to count with.
_LONGEST = {'steps': 1e8, 'epochs': 1e8, 'images': 1e13}
_LARGEST = sys.float_info.max
_KINDS = {int: 'a whole number', float: 'a number', bool: 'True or False',
          str: 'a text'}
_SHOWN = 60  # characters of a value in a message


@dataclasses.dataclass(frozen=True)
class Duration:
  """A length of training: so many steps, epochs or images."""

  value: float
  unit: str

  def steps(self, *, batch_size: int, epoch_steps: int) -> int:
    """The length in steps, rounded down."""
    factor = {'steps': 1, 'epochs': epoch_steps, 'images': 1 / batch_size}
    return int(self.value * factor[self.unit] + 1e-9)


class Errors:
  """Collects the mistakes of a config, to be raised together."""

  def __init__(self):
    self.messages: list[str] = []
    self.is_readable = True
    self._where = ''

  def add(self, message: str):
    """Notes one mistake."""
    self.messages.append(self._where + message)

  def stop(self, message: str):
    """Notes one that leaves nothing to compare with other values."""
    self.add(message)
    self.is_readable = False

  @contextlib.contextmanager
  def inside(self, path: str) -> Iterator[None]:
    """Mistakes noted meanwhile are of this part of the config."""
    before, self._where = self._where, f'{path}: ' if path else ''
    yield
    self._where = before

  def check(self, condition: bool, message: str):
    """Notes `message` unless `condition` holds."""
    if not condition:
      self.add(message)

  def raise_any(self):
    """Raises a UserError that lists every mistake noted so far."""
    if self.messages:
      lines = '\n  '.join(self.messages)
      count = len(self.messages)
      head = 'config' if count == 1 else f'{count} mistakes in the config'
      raise errors.UserError(
          f'{head}: {lines}' if count == 1 else f'{head}:\n  {lines}')


def section(cls: type, values: Any, *, path: str, problems: Errors) -> Any:
  """Builds dataclass `cls` from the keys of a config section.

  A field of type Duration is written with its unit in the key: field
  `warmup` is one of `warmup_steps`, `warmup_epochs`, `warmup_images`. A field
  that may be one of several dataclasses has a key `family` to choose by.

  Args:
    cls: frozen dataclass.
    values: the section.
    path: keys down to the section ('optimizer'), for messages.
    problems: receives unknown keys and wrong values.

  Returns:
    The dataclass, with defaults where a value is wrong; call
    `problems.raise_any()` before using it.
  """
  if not isinstance(values, Mapping):
    problems.stop(f'{path or "the config"}={shown(values)} is not a section: '
                 f'give it the keys {", ".join(keys(cls))}')
    values = {}
  values = {key: value.get() if isinstance(
      value, config_dict.FieldReference) else value
            for key, value in values.items()}
  hints, arguments = _hints(cls), {}
  for field in dataclasses.fields(cls):
    key = f'{path}.{field.name}' if path else field.name
    hint, value = hints[field.name], values.get(field.name)
    if is_duration(hint):
      value = _duration(field, key, hint, values, problems)
    elif families := families_of(hint):
      if value is None and _has_default(field):
        continue
      chosen, inner = _family(families, value, key, problems)
      value = section(chosen, inner, path=key, problems=problems)
    elif field.name in values:
      value = _value(value, hint, key, problems)
    elif _has_default(field):
      continue
    else:
      problems.stop(f'{key} is missing: give it a value')
    arguments[field.name] = value
  for name in sorted(values.keys() - keys(cls), key=str):
    problems.stop(f'{path + "." if path else ""}{name} is not a key: '
                 f'{meant(str(name), keys(cls))}')
  return cls(**arguments)


@functools.cache
def _hints(cls: type) -> dict[str, Any]:
  """Types of fields, with what they allow."""
  return typing.get_type_hints(cls, include_extras=True)


@functools.cache
def keys(cls: type) -> dict[str, dataclasses.Field]:
  """Fields by the keys of a section: a duration has one for each unit."""
  hints = _hints(cls)
  return {key: field for field in dataclasses.fields(cls) for key in (
      [f'{field.name}_{unit}' for unit in UNITS]
      if is_duration(hints[field.name]) else [field.name])}


def meant(name: str, known: Iterable[str]) -> str:
  """Suggests the known names close to a wrong one, or else lists all."""
  known = sorted(known)
  close = difflib.get_close_matches(name, known, 3, 0.6)
  return (f'did you mean {" or ".join(close)}?' if close
          else f'use one of {", ".join(known)}')


def shown(value: Any) -> str:
  """A value as a message shows it: never long, whatever it is."""
  try:
    text = repr(value)
  except ValueError:  # an int with more digits than Python converts
    return 'a number of thousands of digits'
  return text if len(text) <= _SHOWN else f'{text[:_SHOWN]}…'


@functools.cache
def is_duration(hint: Any) -> bool:
  """Tells whether a type is Duration, or Duration or None."""
  return Duration in (hint, *typing.get_args(hint))


@functools.cache
def families_of(hint: Any) -> tuple[type, ...]:
  """The dataclass, or the dataclasses, that a field may be."""
  is_union = typing.get_origin(hint) in (typing.Union, types.UnionType)
  return tuple(h for h in (typing.get_args(hint) if is_union else (hint,))
               if isinstance(h, type) and dataclasses.is_dataclass(h))


def _family(families: tuple[type, ...], values: Any, key: str,
            problems: Errors) -> tuple[type, Any]:
  """The class that `family` names, the first without; and the other keys."""
  if len(families) == 1 or not isinstance(values, Mapping):
    return families[0], {} if values is None else values
  values = dict(values)
  known = {cls.FAMILY: cls for cls in families}
  name = values.pop('family', families[0].FAMILY)
  if not isinstance(name, str) or name not in known:
    problems.stop(f'{key}.family={shown(name)} is not known: use one of '
                 f'{", ".join(known)}')
    return families[0], values
  return known[name], values


def _has_default(field: dataclasses.Field) -> bool:
  return (field.default is not dataclasses.MISSING
          or field.default_factory is not dataclasses.MISSING)


def _duration(field, key: str, hint, values, problems: Errors):
  given = {unit: values.get(f'{field.name}_{unit}') for unit in UNITS}
  given = {unit: v for unit, v in given.items() if not _is_none(v)}
  # 0 gives way to another unit.
  given = {unit: v for unit, v in given.items() if v != 0} or dict(
      list(given.items())[:1])
  if len(given) > 1:
    both = ' and '.join(f'{key}_{unit}' for unit in given)
    problems.stop(f'{both} are both set: set one, and the other to 0')
  for unit, value in given.items():
    allowed = fields.Range(0, _LONGEST[unit])
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
      problems.stop(f'{key}_{unit}={shown(value)} is not a number')
    elif not allowed.holds(value):
      problems.stop(f'{key}_{unit}={shown(value)} is not {allowed}')
    else:
      return Duration(value, unit)
    return Duration(0, 'steps')
  if field.default is not dataclasses.MISSING:
    return field.default
  if type(None) in typing.get_args(hint):
    return None
  problems.stop(
      f'{key} is missing: set one of '
      f'{", ".join(f"{key}_{unit}" for unit in UNITS)}')
  return Duration(0, 'steps')


def _is_none(value: Any) -> bool:
  """Tells whether a value is None, or the text that a flag has for it."""
  return value is None or isinstance(value, str) and value in ('', 'None')


def _value(value: Any, hint: Any, key: str, problems: Errors) -> Any:
  """`value` as type `hint`; a mistake is noted."""
  origin, options = typing.get_origin(hint), typing.get_args(hint)
  if origin in (typing.Union, types.UnionType):
    if _is_none(value) and type(None) in options:
      return None
    options = [o for o in options if o is not type(None)]
    if len(options) > 1 and isinstance(value, tuple | list):
      options = [o for o in options if tuple in (o, typing.get_origin(o))]
    if len(options) > 1 and isinstance(value, str) and value.startswith('('):
      problems.stop(f'{key}={shown(value)} is not read as a tuple: look at its '
                    'brackets, commas and quotes')
    return _value(value, options[0], key, problems)
  if hint is Any:
    return value
  if origin is typing.Annotated:
    return _in_range(value, *options, key, problems)
  if origin is typing.Literal:
    if not isinstance(value, str) or value not in options:
      problems.add(f'{key}={shown(value)} is not known: use one of '
                   f'{", ".join(options)}')
      return options[0]
    return value
  if origin is tuple or hint is tuple:
    if not isinstance(value, tuple | list):
      # One entry with brackets around it is that entry, not a tuple.
      problems.stop(f'{key}={shown(value)} is not {_tuple_words(options)}; a '
                    'tuple of one entry ends with a comma: (entry,)')
      return ()
    return _tuple(value, options, key, problems)
  return _plain(value, hint, key, problems)


def _plain(value: Any, hint: type, key: str, problems: Errors) -> Any:
  """A bool, a number or a text; numbers are finite."""
  kind = {int: numbers.Integral, float: numbers.Real}.get(hint, hint)
  if isinstance(value, bool) is not (hint is bool) or not isinstance(
      value, kind):
    problems.stop(f'{key}={shown(value)} is not {_KINDS[hint]}')
    return hint()
  if hint is str and '\0' in value:
    problems.stop(f'{key}={shown(value)} holds a character that no name has')
  if hint is float and not -_LARGEST <= value <= _LARGEST:
    problems.stop(f'{key}={shown(value)} is not a finite number')
    return 0.0
  return hint(value)


def _in_range(value: Any, hint: Any, allowed: fields.Range, key: str,
              problems: Errors) -> Any:
  before = len(problems.messages)
  value = _value(value, hint, key, problems)
  if len(problems.messages) == before and not allowed.holds(value):
    problems.stop(f'{key}={shown(value)} is not {allowed}')
  return value


def _tuple(value, options, key: str, problems: Errors) -> tuple:
  if len(options) == 2 and options[1] is Ellipsis:
    return tuple(_value(v, options[0], f'{key}[{i}]', problems)
                 for i, v in enumerate(value))
  if options and len(options) != len(value):
    problems.stop(f'{key}={shown(tuple(value))} does not have {len(options)} '
                 'entries')
    return tuple(value)
  hints = options or (Any,) * len(value)
  return tuple(_value(v, h, f'{key}[{i}]', problems)
               for i, (v, h) in enumerate(zip(value, hints, strict=True)))


def _tuple_words(options: tuple) -> str:
  """Names what a tuple holds, such as 'a pair of a text and a number'."""
  kinds = [_KINDS.get(getattr(o, '__origin__', o)) for o in options]
  if len(kinds) == 2 and all(kinds):
    return f'a pair of {kinds[0]} and {kinds[1]}'
  return 'a tuple'


def merged(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict:
  """Nested `base` with the values of `changes`.

  A section of another `family` takes the place of the old one, and so does a
  duration in another unit.
  """
  out = dict(base)
  for key, value in changes.items():
    name, _, unit = str(key).rpartition('_')
    if value is None and unit in UNITS and name:
      continue
    if unit in UNITS and name:
      out |= {f'{name}_{other}': None for other in UNITS
              if f'{name}_{other}' in base}
    old = base.get(key)
    alike = isinstance(old, Mapping) and isinstance(value, Mapping) and (
        old.get('family') == value.get('family'))
    out[key] = merged(old, value) if alike else value
  return out


def plain(config: Any) -> dict:
  """A ConfigDict as nested plain dicts, references resolved.

  Raises:
    UserError: it is none, and no dict.
  """
  if isinstance(config, config_dict.ConfigDict):
    config = config.copy_and_resolve_references().to_dict()
  if not isinstance(config, Mapping):
    raise errors.UserError(
        f'a config is a ConfigDict or a dict, not {shown(config)}')
  return dict(config)


def flatten(value: Any, path: str = '', *, results_only: bool = False) -> dict:
  """A dataclass as {'optimizer.betas': …}; optionally without free fields."""
  if isinstance(value, Mapping):
    return {key: leaf for name, inner in value.items() for key, leaf in
            flatten(inner, f'{path}.{name}', results_only=results_only
                    ).items()}
  if not dataclasses.is_dataclass(value):
    return {path: _jsonable(value)}
  if isinstance(value, Duration):
    return {f'{path}_{value.unit}': value.value}
  flat = {f'{path}.family': value.FAMILY} if hasattr(value, 'FAMILY') else {}
  for field in dataclasses.fields(value):
    if results_only and field.metadata.get('free'):
      continue
    key = f'{path}.{field.name}' if path else field.name
    flat |= flatten(getattr(value, field.name), key, results_only=results_only)
  return flat


def _jsonable(value: Any) -> Any:
  return [_jsonable(v) for v in value] if isinstance(
      value, tuple | list) else value


def difference(old: dict, new: dict) -> list[str]:
  """One line for every key of two `flatten`ed configs that differs."""
  lines = []
  for key in sorted(set(old) | set(new)):
    before, after = old.get(key, '(absent)'), new.get(key, '(absent)')
    if before != after:
      lines.append(f'{key}: {before} → {after}')
  return lines
