"""Former spellings of config keys: runs of before keep their config.json.

Whoever renames a key of a section adds a line to `FORMER`; `train.settings`
reads every config, a file's and a run's, through `current`.
"""

from collections.abc import Mapping
from typing import Any

from dinojax.core import errors

# Former key: (the key, the version that renamed it), such as
# 'koleo.weight': ('koleo.loss_weight', '0.2'). No key was renamed since 0.1.
FORMER: Mapping[str, tuple[str, str]] = {}
_STUDENTS = 'students'


def current(config: Mapping[str, Any],
            former: Mapping[str, tuple[str, str]] | None = None
            ) -> dict[str, Any]:
  """A nested config with today's keys, those of each student too.

  Args:
    config: sections by name.
    former: see FORMER, which is taken without it.

  Raises:
    UserError: a key is there in both spellings.
  """
  out = {key: dict(value) if isinstance(value, Mapping) else value
         for key, value in config.items()}
  for old, (new, version) in (FORMER if former is None else former).items():
    section, _, key = old.rpartition('.')
    place = _section(out, section)
    if place is None or key not in place:
      continue
    value = place.pop(key)
    section, _, key = new.rpartition('.')
    target = _section(out, section, make=True)
    if key in target:
      raise errors.UserError(
          f'{old} was renamed {new} in version {version}, and both are set: '
          f'leave {old} out')
    target[key] = value
  students = out.get(_STUDENTS)
  if isinstance(students, dict):
    for name, student in students.items():
      if isinstance(student, Mapping):
        students[name] = current(student, former)
  return out


def _section(config: dict, path: str, *, make: bool = False) -> dict | None:
  """A section by its path, copied on the way; None: it is not there."""
  for name in filter(None, path.split('.')):
    inner = config.get(name, {} if make else None)
    if not isinstance(inner, Mapping):
      return None
    config[name] = inner = dict(inner)
    config = inner
  return config
