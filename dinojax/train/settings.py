"""Everything a run is: a config as settings, and what must agree in it.

A config (configs/*.py) has the sections of `Settings`; keys are field names.
`read` builds and checks them, and reports all mistakes at once.
"""

from collections.abc import Mapping
import dataclasses
import fractions
import math
from typing import Any
import warnings

from dinojax.core import config as config_lib
from dinojax.core import errors
from dinojax.core import paths
from dinojax.core import spellings
from dinojax.train import sections
from dinojax.train import validation

free = config_lib.free
_MOST_PARTS = 64  # of a batch, in shares
ALIGNMENT = 'alignment'  # section of a config of another kind
Settings = sections.Settings


def read(config: Any, kind: type[Settings] = Settings) -> Settings:
  """Builds and checks a config.

  Args:
    config: ConfigDict or nested dict with the sections of `kind`.
    kind: Settings, or a subclass with more terms of the loss.

  Raises:
    UserError: every mistake, each with its key, value and fix.
  """
  problems = config_lib.Errors()
  values = paths.expand_all(spellings.current(config_lib.plain(config)))
  if ALIGNMENT in values:
    raise errors.UserError(
        f'this config is of text alignment (it has the section {ALIGNMENT}), '
        'which `dinojax train` trains; what was asked for takes a config of '
        'pretraining, such as vits')
  settings = _with_students(values, kind, problems)
  if not problems.is_readable:
    problems.raise_any()
  settings = _with_groups(settings)
  validation.check(settings, problems)
  problems.raise_any()
  return settings


def _with_students(config: dict, kind: type[Settings],
                   problems: config_lib.Errors) -> Settings:
  """The settings, and those of every student: the same but for its own."""
  # The registry of evaluations reads `evals`, which is above this room.
  shared = {k: v for k, v in config.items() if k not in ('students', 'evals')}
  make = lambda values, path: config_lib.section(
      kind, values, path=path, problems=problems)
  settings, students = make(shared, ''), {}
  theirs = kind.own_sections()
  given = config.get('students') or {}
  if not isinstance(given, Mapping):
    problems.stop(f'students={config_lib.shown(given)} is not a section: give '
                  'each student a name and what it has of its own')
    given = {}
  for name, changes in given.items():
    path = f'students.{name}'
    if not isinstance(changes, Mapping):
      problems.stop(f'{path}={config_lib.shown(changes)} is not a section: '
                    f'give it any of {", ".join(theirs)}')
      continue
    wrong = sorted(changes.keys() - set(theirs), key=str)
    for key in wrong:
      problems.stop(
          f'{path}.{key}: all students have the same {key}; a student has its '
          f'own {", ".join(theirs)}')
    if not wrong:
      students[str(name)] = make(config_lib.merged(shared, changes), path)
  return dataclasses.replace(
      settings, students=students, evals=config.get('evals') or {})


def _with_groups(settings: Settings) -> Settings:
  """The settings with the groups that follow the batch, where none are set."""
  t = settings.train
  follows = largest_divisor(
      max(t.batch_size // t.num_micro_batches, 1), t.max_group_images)
  group = t.group_images or follows
  return dataclasses.replace(
      settings, train=dataclasses.replace(t, group_images=group),
      **{name: getattr(settings, name).with_groups(group, follows)
         for name in settings.terms()},
      students={name: _with_groups(student)
                for name, student in settings.students.items()})


def largest_divisor(number: int, most: int) -> int:
  """The largest number up to `most` that divides `number`."""
  small = [n for n in range(1, math.isqrt(number) + 1) if number % n == 0]
  return max(n for pair in ((m, number // m) for m in small) for n in pair
             if n <= most)


def check_devices(settings: Settings, num_devices: int):
  """Checks that batch and groups fit the devices.

  Raises:
    UserError: they do not; it says what would.

  Warns when stochastic depth rounds the kept fraction of a group by more
  than 0.05.
  """
  t, group = settings.train, settings.train.group_images
  unit = num_devices * t.num_micro_batches
  if t.batch_size % unit:
    better = max(round(t.batch_size / unit), 1) * unit
    raise errors.UserError(
        f'train.batch_size={t.batch_size} is not divisible by {num_devices} '
        f'devices × {t.num_micro_batches} micro-batches: set '
        f'train.batch_size to {better}')
  rows = t.batch_size // unit
  if rows % group:
    fits = [n for n in range(num_devices, 0, -1)
            if t.batch_size % (n * t.num_micro_batches * group) == 0]
    raise errors.UserError(
        f'train.group_images={group} does not divide the {rows} images that '
        f'a device takes at a time: set train.batch_size to '
        f'{max(math.ceil(rows / group), 1) * group * unit}, '
        f'train.group_images to {math.gcd(rows, group)}, or run on '
        f'{fits[0] if fits else 1} devices')
  for name, student in settings.each.items():
    _check_share(student, name, rows // group)
    _check_together(student, rows)
    _warn_rounding(student)
    _warn_cosines(student)


def _check_share(settings: Settings, name: str, groups: int):
  """Checks that train.share is a whole number of a device's groups."""
  share = settings.train.share
  take, of = fraction(share)
  if groups % of or not take or abs(take / of - share) > 1e-3:
    raise errors.UserError(
        f'students.{name}.train.share={settings.train.share} is {take} of '
        f'{of} groups, and a device takes {groups} groups at a time: set it '
        f'to a multiple of 1/{groups}, or train.group_images to less')


def _check_together(settings: Settings, rows: int):
  """Checks that micro-batches on a device hold whole groups of every term."""
  rows = round(rows * settings.train.share)
  for term in settings.objectives:
    group = term.images_together()
    if settings.train.num_micro_batches > 1 and rows % group:
      least = math.gcd(rows, group)
      raise errors.UserError(
          f'{term.NAME}.group_images={group} does not divide the {rows} images '
          'that a device takes at a time; with train.num_micro_batches > 1 a '
          'group must: set '
          + (f'{term.NAME}.group_images to {least}' if least > 1 else
             'train.num_micro_batches to 1, or '
             f'{term.NAME}.loss_weight to 0'))


def fraction(share: float) -> tuple[int, int]:
  """A share as so many groups of so many."""
  exact = fractions.Fraction(share).limit_denominator(_MOST_PARTS)
  return exact.numerator, exact.denominator


def _warn_cosines(settings: Settings):
  for name, curve in vars(settings.schedules).items():
    cosine = getattr(curve, 'cosine', None)
    if settings.schedules.style == 'v2' and cosine is not None:
      warnings.warn(
          f'schedules.{name}.cosine_{cosine.unit}={cosine.value:g} does '
          'nothing: with schedules.style=v2 a cosine takes the rest of '
          'training; leave it out, or set the style to v3', stacklevel=2)


def _warn_rounding(settings: Settings):
  rate = getattr(settings.model, 'drop_path_rate', 0.0)
  if not rate:
    return
  for kind in ('global', 'local'):
    views = getattr(settings.crops, f'num_{kind}')
    rows = settings.train.group_images * views
    if not rows:
      continue
    kept = max(int(rows * (1 - rate)), 1) / rows
    if abs(kept - (1 - rate)) > 0.05:
      warnings.warn(
          f'model.drop_path_rate={rate} keeps {kept:.2f} of the {rows} '
          f'{kind} rows of a group instead of {1 - rate:.2f}: a larger '
          'train.group_images rounds less', stacklevel=2)
