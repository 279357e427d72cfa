"""Recipes: a config becomes a chain of stages, each reading those before."""

from collections.abc import Callable, Mapping
import dataclasses
import types
from typing import Any

from dinojax.core import config as config_lib
from dinojax.core import errors
from dinojax.curate import assumptions
from dinojax.curate.stages import base
from dinojax.curate.stages import cluster
from dinojax.curate.stages import decontaminate
from dinojax.curate.stages import dedup
from dinojax.curate.stages import describe
from dinojax.curate.stages import filters
from dinojax.curate.stages import hashes
from dinojax.curate.stages import ingest
from dinojax.curate.stages import materialize
from dinojax.curate.stages import retrieve
from dinojax.curate.stages import sample
from dinojax.curate.stages import urls

# Stages by name: their module, class, and the roles of what they read.
STAGES: Mapping[str, tuple[types.ModuleType, type[base.Stage],
                           tuple[str, ...]]] = {
    'urls': (urls, urls.Urls, ()),
    'ingest': (ingest, ingest.Ingest, ()),
    'filter': (filters, filters.Filter, ('pool', 'after')),
    'hash': (hashes, hashes.Hash, ('pool', 'after')),
    'describe': (describe, describe.Describe, ('pool', 'after', 'pixels')),
    'dedup': (dedup, dedup.Dedup, ('pool', 'after', 'descriptors')),
    'decontaminate': (decontaminate, decontaminate.Decontaminate,
                      ('pool', 'after', 'descriptors', 'edges')),
    'embed': (describe, describe.Describe, ('pool', 'after', 'pixels')),
    'retrieve': (retrieve, retrieve.Retrieve,
                 ('pool', 'after', 'embeddings')),
    'cluster': (cluster, cluster.Cluster, ('pool', 'after', 'embeddings')),
    'sample': (sample, sample.Sample, ('clusters',)),
    'materialize': (materialize, materialize.Materialize,
                    ('pool', 'after', 'pixels', 'selections'))}
_JUDGES = ('ingest', 'filter', 'hash', 'dedup', 'decontaminate')
SELECTIONS = ('retrieve', 'sample')
# Stages that can take a role, the best first.
_TAKERS = {'pool': ('ingest',), 'descriptors': ('describe', 'embed'),
           'embeddings': ('embed', 'describe'), 'clusters': ('cluster',),
           'edges': ('dedup',), 'pixels': ('filter',)}
_OPTIONAL = ('edges', 'pixels', 'selections')
# Stages of a config that names none.
_USUAL = ('ingest', 'filter', 'hash', 'describe', 'dedup', 'embed', 'cluster',
          'sample', 'materialize')

Settings = dataclasses.make_dataclass('Settings', [
    ('stages', tuple[str, ...], _USUAL),
    ('plan', assumptions.Settings, assumptions.Settings()),
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
  out: list[base.Stage] = []
  for name in settings.stages:
    _, kind, roles = STAGES[name]
    before = [stage.name for stage in out]
    if name in before:
      raise errors.UserError(f'stages has {name} twice: give each once')
    reads = {}
    for role in roles:
      taken = _taken(role, before)
      reads |= taken
      if not taken and role not in _OPTIONAL:
        options = ' or '.join(_TAKERS.get(role, _JUDGES[:1]))
        raise errors.UserError(
            f'stage {name} reads what {options} gives, and none is before it: '
            f'stages={",".join(settings.stages)}')
    out.append(kind(getattr(settings, name), reads, name, **_more(
        kind, reads, {stage.name: stage for stage in out}, load)))
  return out


def _taken(role: str, before: list[str]) -> dict[str, str]:
  """The stages among those before that take a role, by what they are."""
  if role == 'selections':
    return {f'selection {name}': name for name in SELECTIONS
            if name in before}
  options = (reversed(before) if role == 'after' else _TAKERS[role])
  known = _JUDGES if role == 'after' else before
  name = next((name for name in options if name in known), None)
  what = 'vectors' if role in ('descriptors', 'embeddings') else role
  return {what: name} if name else {}


def _more(kind: type[base.Stage], reads: Mapping[str, str],
          stages: Mapping[str, base.Stage], load: Callable) -> dict[str, Any]:
  """Arguments that only some stages have."""
  if kind is describe.Describe:
    return {'load': load}
  if kind is retrieve.Retrieve:
    return {'describer': stages[reads['vectors']].describer}
  if kind is decontaminate.Decontaminate:
    edges = stages.get(reads.get('edges'))
    return {'describer': stages[reads['vectors']].describer,
            'floor': edges.config.floor if edges else None}
  return {}
