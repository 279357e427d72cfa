"""ConfigDict in, frozen dataclasses out, every mistake named at once.

The only module that knows ml_collections. A section of a config is a frozen
dataclass whose field names are the keys; `section` builds it and collects
errors. Fields are `result` (change what is learned) unless marked `free`.
"""

from collections.abc import Iterator, Mapping
import contextlib
import dataclasses
import types
import typing
from typing import Any

from ml_collections import config_dict

from dinojax.core import errors

UNITS = ('steps', 'epochs', 'images')


@dataclasses.dataclass(frozen=True)
class Duration:
  """A length of training: so many steps, epochs or images."""

  value: float
  unit: str

  def steps(self, *, batch_size: int, epoch_steps: int) -> int:
    """The length in steps, rounded down."""
    factor = {'steps': 1, 'epochs': epoch_steps, 'images': 1 / batch_size}
    return int(self.value * factor[self.unit] + 1e-9)


def free(default: Any = dataclasses.MISSING, **kwargs) -> Any:
  """A field that does not change the result: workers, logging, devices."""
  return dataclasses.field(
      default=default, metadata={'free': True}, **kwargs)


class Errors:
  """Collects the mistakes of a config, to be raised together."""

  def __init__(self):
    self.messages: list[str] = []
    self._where = ''

  def add(self, message: str):
    """Notes one mistake."""
    self.messages.append(self._where + message)

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


def section(cls: type, values: Mapping[str, Any], *, path: str,
            problems: Errors) -> Any:
  """Builds dataclass `cls` from the keys of a config section.

  A field of type Duration is written with its unit in the key: field
  `warmup` is one of `warmup_steps`, `warmup_epochs`, `warmup_images`. A field
  that may be one of several dataclasses has a key `family` for which.

  Args:
    cls: frozen dataclass.
    values: the section.
    path: of the section, for messages ('optimizer').
    problems: receives unknown keys and wrong types.

  Returns:
    The dataclass, with defaults where a value is wrong; call
    `problems.raise_any()` before using it.
  """
  hints = typing.get_type_hints(cls)
  known, arguments = set(), {}
  for field in dataclasses.fields(cls):
    key = f'{path}.{field.name}' if path else field.name
    hint = hints[field.name]
    if Duration in (hint, *typing.get_args(hint)):
      known.update(f'{field.name}_{unit}' for unit in UNITS)
      value = _duration(field, key, hint, values, problems)
    elif families := _families(hint):
      known.add(field.name)
      inner = values.get(field.name)
      if inner is None and _has_default(field):
        continue
      chosen, inner = _family(families, inner or {}, key, problems)
      value = section(chosen, inner, path=key, problems=problems)
    elif field.name in values:
      known.add(field.name)
      value = _value(values[field.name], hint, key, problems)
    elif _has_default(field):
      known.add(field.name)
      continue
    else:
      problems.add(f'{key} is missing: give it a value')
      value = None
    arguments[field.name] = value
  for name in sorted(set(values) - known):
    problems.add(
        f'{path + "." if path else ""}{name} is not a key: use one of '
        f'{", ".join(sorted(known))}')
  return cls(**arguments)


def _families(hint: Any) -> tuple[type, ...]:
  """The dataclass, or the dataclasses, that a field may be."""
  return tuple(h for h in (typing.get_args(hint) or (hint,))
               if dataclasses.is_dataclass(h))


def _family(families: tuple[type, ...], values: Mapping[str, Any], key: str,
            problems: Errors) -> tuple[type, dict]:
  """The class that `family` names, the first without; and the other keys."""
  values = dict(values)
  if len(families) == 1:
    return families[0], values
  known = {cls.FAMILY: cls for cls in families}
  name = values.pop('family', families[0].FAMILY)
  if name not in known:
    problems.add(f'{key}.family={name!r} is not known: use one of '
                 f'{", ".join(known)}')
  return known.get(name, families[0]), values


def _has_default(field: dataclasses.Field) -> bool:
  return (field.default is not dataclasses.MISSING
          or field.default_factory is not dataclasses.MISSING)


def _duration(field, key: str, hint, values, problems: Errors):
  given = {unit: values.get(f'{field.name}_{unit}') for unit in UNITS}
  given = {unit: v for unit, v in given.items() if v is not None}
  # A command line cannot say None, so 0 gives way to another unit.
  given = {unit: v for unit, v in given.items() if v != 0} or dict(
      list(given.items())[:1])
  if len(given) > 1:
    keys = ' and '.join(f'{key}_{unit}' for unit in given)
    problems.add(f'{keys} are both set: set one, and the other to 0')
  for unit, value in given.items():
    if isinstance(value, bool) or not isinstance(value, int | float):
      problems.add(f'{key}_{unit}={value!r} is not a number')
    elif value < 0:
      problems.add(f'{key}_{unit}={value} is negative: set 0 or more')
    else:
      return Duration(value, unit)
    return Duration(0, 'steps')
  if field.default is not dataclasses.MISSING:
    return field.default
  if type(None) in typing.get_args(hint):
    return None
  problems.add(
      f'{key} is missing: set one of '
      f'{", ".join(f"{key}_{unit}" for unit in UNITS)}')
  return Duration(0, 'steps')


def _value(value: Any, hint: Any, key: str, problems: Errors) -> Any:
  """`value` as type `hint`; a mistake is noted."""
  origin, options = typing.get_origin(hint), typing.get_args(hint)
  if isinstance(value, config_dict.FieldReference):
    value = value.get()
  if origin in (typing.Union, types.UnionType):
    # A command line cannot say None, so nothing stands for it.
    if value in (None, '') and type(None) in options:
      return None
    options = [o for o in options if o is not type(None)]
    if len(options) == 1:
      return _value(value, options[0], key, problems)
    if any(isinstance(value, o) for o in options):
      return value
    hint = options[0]
  if hint is Any:
    return value
  if origin is tuple or hint is tuple:
    if not isinstance(value, tuple | list):
      problems.add(f'{key}={value!r} is not a tuple')
      return ()
    return _tuple(value, options, key, problems)
  if hint is float and isinstance(value, int) and not isinstance(value, bool):
    return float(value)
  if not isinstance(value, hint) or (
      isinstance(value, bool) and hint is not bool):
    problems.add(f'{key}={value!r} is not of type {hint.__name__}')
  return value


def _tuple(value, options, key: str, problems: Errors) -> tuple:
  if len(options) == 2 and options[1] is Ellipsis:
    return tuple(_value(v, options[0], f'{key}[{i}]', problems)
                 for i, v in enumerate(value))
  if options and len(options) != len(value):
    problems.add(f'{key}={tuple(value)} does not have {len(options)} entries')
    return tuple(value)
  hints = options or (Any,) * len(value)
  return tuple(_value(v, h, f'{key}[{i}]', problems)
               for i, (v, h) in enumerate(zip(value, hints, strict=True)))


def merged(base: Mapping[str, Any], own: Mapping[str, Any]) -> dict:
  """Nested `base` with the values of `own`.

  A section of another `family` takes the place of the old one, and so does a
  duration in another unit.
  """
  out = dict(base)
  for key, value in own.items():
    name, _, unit = key.rpartition('_')
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
    UserError: the file that --config or --recipe names cannot be loaded.
  """
  if isinstance(config, config_dict.ConfigDict):
    config = config.copy_and_resolve_references().to_dict()
  try:
    return dict(config)
  except OSError as error:  # what the flag gives for such a file
    raise errors.UserError(
        f'config file: {" ".join(str(error).split())}') from error


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
