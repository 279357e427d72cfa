"""All protocols of evaluation by name; a new one is its file and a line here.

A protocol is a module of `protocols`: `TITLE`; `COST`, how often images go
through the backbone, for people; `ROLES`, the sets that it reads; `Settings`,
its section of the config; `check`, which refuses backbones; `passes`, the
images that go through one; and `run`. `TRAINS` is True where heads are trained,
whose memory is planned. `PIXELS` is the size of its images, of its section,
where that is not the one of `data`; '' where every image keeps its own.
`NEEDS` are fields of its section without which it cannot run, and what to give;
`FILES` are others that name files, whose contents numbers depend on.
"""

from collections.abc import Callable, Mapping, Sequence
import dataclasses
import difflib
import types
from typing import Any

from dinojax.core import config as config_lib
from dinojax.core import errors
from dinojax.core import fields
from dinojax.data import images
from dinojax.evals import protocol
from dinojax.evals import stored_heads
from dinojax.evals.protocols import canopy
from dinojax.evals.protocols import captions
from dinojax.evals.protocols import copydays
from dinojax.evals.protocols import correspondence
from dinojax.evals.protocols import depth
from dinojax.evals.protocols import detection
from dinojax.evals.protocols import fairness
from dinojax.evals.protocols import fewshot
from dinojax.evals.protocols import finetune
from dinojax.evals.protocols import knn
from dinojax.evals.protocols import lidar
from dinojax.evals.protocols import linear
from dinojax.evals.protocols import logistic
from dinojax.evals.protocols import multilabel
from dinojax.evals.protocols import open_vocabulary
from dinojax.evals.protocols import rankme
from dinojax.evals.protocols import retrieval
from dinojax.evals.protocols import robustness
from dinojax.evals.protocols import segmentation
from dinojax.evals.protocols import segments
from dinojax.evals.protocols import tokencut
from dinojax.evals.protocols import tracking
from dinojax.evals.protocols import video
from dinojax.evals.protocols import zero_shot

PROTOCOLS: Mapping[str, types.ModuleType] = {
    'knn': knn, 'logistic': logistic, 'linear': linear, 'fewshot': fewshot,
    'finetune': finetune, 'multilabel': multilabel, 'robustness': robustness,
    'rankme': rankme, 'lidar': lidar, 'segmentation': segmentation,
    'segments': segments, 'detection': detection, 'depth': depth,
    'canopy': canopy,
    'retrieval': retrieval, 'copydays': copydays,
    'correspondence': correspondence,
    'tokencut': tokencut, 'tracking': tracking, 'video': video,
    'fairness': fairness, 'zero_shot': zero_shot, 'captions': captions,
    'open_vocabulary': open_vocabulary}
SUITES = {'quick': ('knn', 'linear', 'rankme'),
          'classification': ('knn', 'linear', 'logistic', 'fewshot'),
          'dense': ('segmentation', 'depth'),
          'matching': ('correspondence', 'tokencut', 'tracking'),
          'text': ('zero_shot', 'captions', 'open_vocabulary'),
          'all': tuple(PROTOCOLS)}


CACHED_SUITES = ('quick',)  # their heads learn from stored features


@dataclasses.dataclass(frozen=True)
class Reading:
  """How images are read; changes nothing but the time that it takes."""

  batch_size: fields.Positive = fields.free(64)  # Images at a time.
  num_threads: fields.Positive = fields.free(2)  # Threads that decode.
  num_workers: fields.Natural = fields.free(0)  # Processes that decode.
  # Pixels of the largest image that is read.
  max_pixels: fields.Positive = images.DEFAULT_MAX_PIXELS


# The config of an evaluation: a section for each protocol, and what they
# share.
Settings = dataclasses.make_dataclass('Settings', [
    ('data', protocol.Data, protocol.Data()),
    ('reading', Reading, Reading()),
    *((name, module.Settings, module.Settings())
      for name, module in PROTOCOLS.items())], frozen=True)


def meanings() -> dict[str, str]:
  """Meaning of every section."""
  return {field.name: (field.type.__doc__ or '').splitlines()[0]
          for field in dataclasses.fields(Settings)}


def read(config: Any) -> Settings:
  """The settings of a config.

  Raises:
    UserError: unknown keys or wrong values, all at once.
  """
  problems = config_lib.Errors()
  settings = config_lib.section(
      Settings, config_lib.plain(config), path='', problems=problems)
  problems.raise_any()
  return settings


def cached(settings: Settings) -> Settings:
  """The settings with heads that learn from features computed once."""
  return dataclasses.replace(settings, **{
      name: dataclasses.replace(getattr(settings, name), cached=True)
      for name in PROTOCOLS if hasattr(getattr(settings, name), 'cached')})


def listed_protocols() -> str:
  """Every protocol, its sets and its cost, a line each, for people."""
  return ''.join(
      f'\n- {name}: {module.TITLE}. Sets: {", ".join(module.ROLES)}. Images: '
      f'{module.COST}.' for name, module in PROTOCOLS.items())


def listed_suites() -> str:
  """Every suite and its protocols, for people."""
  return ''.join(f'\n- {name}: {", ".join(protocols)}.'
                 for name, protocols in SUITES.items() if name != 'all')


def chosen(names: Sequence[str], suite: str | None) -> list[str]:
  """The protocols that are asked for, each once, in the order of asking.

  Raises:
    UserError: one is not known, or none is asked for.
  """
  if suite is not None and suite not in SUITES:
    raise errors.UserError(
        f'--suite={suite} is not known: use one of {", ".join(SUITES)}')
  wanted = dict.fromkeys([*names, *SUITES.get(suite, ())])
  if not wanted:
    raise errors.UserError(
        'no protocol is asked for: give --protocols=knn,linear, or --suite='
        f'{"|".join(SUITES)}')
  for name in wanted:
    if name not in PROTOCOLS:
      near = difflib.get_close_matches(name, PROTOCOLS, 2, 0.5)
      hint = f'did you mean {" or ".join(near)}?' if near else (
          f'use some of {", ".join(PROTOCOLS)}')
      raise errors.UserError(f'--protocols={name} is not known: {hint}')
  return list(wanted)


def missing(name: str, settings: Settings) -> list[str]:
  """Sentences on sets, and other things, that a protocol needs and has not."""
  needs = getattr(PROTOCOLS[name], 'NEEDS', {})
  return [
      f'{_key(name, role, settings)} is missing: give {wanted.what}'
      for role, wanted in PROTOCOLS[name].ROLES.items()
      if wanted.needed and not _specs(name, role, settings)] + [
          f'{name}.{field} is missing: give {what}'
          for field, what in needs.items()
          if not getattr(getattr(settings, name), field)]


def opened(name: str, settings: Settings) -> dict[str, tuple]:
  """The sets of a protocol by role; (): none is given.

  Raises:
    UserError: a set that is not given, or not there.
  """
  sets = {role: tuple(wanted.opens(spec)
                      for spec in _specs(name, role, settings))
          for role, wanted in PROTOCOLS[name].ROLES.items()}
  lacking = missing(name, settings)
  if lacking:
    raise errors.UserError('\n'.join(lacking))
  for role in ('train', 'validation'):
    for each in sets.get(role, ()):
      if getattr(each, 'evaluation_only', False):
        raise errors.UserError(
            f'{_key(name, role, settings)}={each.spec} is a set whose terms '
            'allow no training or choice on it: give it as a test set')
  return sets


def contents(name: str, settings: Settings) -> dict[str, str]:
  """Digests of the files that a protocol's section names, by field."""
  section, module = getattr(settings, name), PROTOCOLS[name]
  fields_ = [*getattr(module, 'NEEDS', ()), *getattr(module, 'FILES', ())]
  return {field: stored_heads.digest(getattr(section, field))
          for field in fields_ if getattr(section, field)}


def _specs(name: str, role: str, settings: Settings) -> tuple[str, ...]:
  """The specs of a role's sets, of the protocol's section or shared."""
  shared = PROTOCOLS[name].ROLES[role].data
  specs = getattr(getattr(settings, name), role, None) or (
      getattr(settings.data, shared) if shared else None)
  return (specs,) if isinstance(specs, str) else tuple(specs or ())


def _key(name: str, role: str, settings: Settings) -> str:
  """The key of the config that gives a role."""
  if hasattr(getattr(settings, name), role):
    return f'{name}.{role}'
  return f'data.{PROTOCOLS[name].ROLES[role].data}'


def check(name: str, settings: Settings, config: Any):
  """Checks that a backbone has what a protocol reads.

  Raises:
    UserError: it has not.
  """
  PROTOCOLS[name].check(getattr(settings, name), config)


def run(name: str, job: protocol.Job, settings: Settings
        ) -> list[protocol.Measured]:
  """Runs a protocol.

  Raises:
    UserError: see the protocol.
  """
  run_it: Callable = PROTOCOLS[name].run
  return run_it(job, getattr(settings, name))
