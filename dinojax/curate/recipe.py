"""Recipes: a config becomes a chain of stages, each reading those before."""

from collections.abc import Callable, Mapping
import dataclasses
import types
from typing import Any

from dinojax.core import config as config_lib
from dinojax.core import errors
from dinojax.curate.stages import base
from dinojax.curate.stages import cluster
from dinojax.curate.stages import dedup
from dinojax.curate.stages import describe
from dinojax.curate.stages import filters
from dinojax.curate.stages import hashes
from dinojax.curate.stages import ingest
from dinojax.curate.stages import materialize
from dinojax.curate.stages import sample

# Stages by name: their module, class, and the roles of what they read.
STAGES: Mapping[str, tuple[types.ModuleType, type[base.Stage],
                           tuple[str, ...]]] = {
    'ingest': (ingest, ingest.Ingest, ()),
    'filter': (filters, filters.Filter, ('pool', 'after')),
    'hash': (hashes, hashes.Hash, ('pool', 'after')),
    'describe': (describe, describe.Describe, ('pool', 'after')),
    'dedup': (dedup, dedup.Dedup, ('pool', 'after', 'descriptors')),
    'embed': (describe, describe.Describe, ('pool', 'after')),
    'cluster': (cluster, cluster.Cluster, ('pool', 'after', 'embeddings')),
    'sample': (sample, sample.Sample, ('clusters',)),
    'materialize': (materialize, materialize.Materialize,
                    ('pool', 'after', 'selection'))}
_JUDGES = ('ingest', 'filter', 'hash', 'dedup')
# Stages that can take a role, the best first.
_TAKERS = {'pool': ('ingest',), 'descriptors': ('describe', 'embed'),
           'embeddings': ('embed', 'describe'), 'clusters': ('cluster',),
           'selection': ('sample',)}
_OPTIONAL = ('selection',)

Settings = dataclasses.make_dataclass('Settings', [
    ('stages', tuple[str, ...], tuple(STAGES)),
    *((name, module.Settings, module.Settings())
      for name, (module, *_) in STAGES.items())], frozen=True)


def meanings() -> dict[str, str]:
  """Meaning of every section, and of `stages`."""
  return {'stages': 'Stages in their order, each at most once.'} | {
      field.name: (field.type.__doc__ or '').splitlines()[0]
      for field in dataclasses.fields(Settings) if field.name != 'stages'}


def read(config: Any) -> Settings:
  """Settings of a config; every mistake is named.

  Raises:
    UserError: see `config.section`, and stages that are not known.
  """
  problems = config_lib.Errors()
  settings = config_lib.section(
      Settings, config_lib.plain(config), path='', problems=problems)
  for name in settings.stages:
    problems.check(name in STAGES, (
        f'stages has {name!r}: {config_lib.meant(name, STAGES)}'))
  problems.raise_any()
  return settings


def chain(settings: Settings, load: Callable) -> list[base.Stage]:
  """Stages, each with the names of those that it reads.

  Args:
    settings: settings as `read` gives them.
    load: gives the backbone of a name; a function that can be pickled.

  Raises:
    UserError: a stage that reads what no stage before it gives.
  """
  out, before = [], []
  for name in settings.stages:
    _, kind, roles = STAGES[name]
    if name in before:
      raise errors.UserError(f'stages has {name} twice: give each once')
    reads = {}
    for role in roles:
      taken = _taken(role, before)
      if taken:
        reads['vectors' if role in ('descriptors', 'embeddings')
              else role] = taken
      elif role not in _OPTIONAL:
        options = ' or '.join(_JUDGES[:1] if role == 'after'
                              else _TAKERS[role])
        raise errors.UserError(
            f'stage {name} reads what {options} gives, and none is before it: '
            f'stages={",".join(settings.stages)}')
    more = {'load': load} if kind is describe.Describe else {}
    out.append(kind(getattr(settings, name), reads, name, **more))
    before.append(name)
  return out


def _taken(role: str, before: list[str]) -> str | None:
  """The stage among those before that takes a role."""
  if role == 'after':
    return next((name for name in reversed(before) if name in _JUDGES), None)
  return next((name for name in _TAKERS[role] if name in before), None)
