"""Curation: a config's chain of stages in a workdir, by an engine."""

from collections.abc import Mapping, Sequence
import contextlib
import dataclasses
import fcntl
import json
import math
import os
import pathlib
from typing import Any

from dinojax.core import atomic
from dinojax.core import errors
from dinojax.core import paths
from dinojax.curate import chain
from dinojax.curate import costs
from dinojax.curate import machines
from dinojax.curate import recipe
from dinojax.curate.engines import array
from dinojax.curate.engines import in_process
from dinojax.curate.engines import on_ray
from dinojax.curate.stages import materialize
from dinojax.data import curated
from dinojax.features import backbone as backbone_lib
from dinojax.runs import assemble
from dinojax.runs import models as models_lib
from dinojax.runs.report import curation as report
from dinojax.runs.report import retrieval

_MOST_IMAGES = 1e12
ENGINES = ('in_process', 'array', 'ray')


@dataclasses.dataclass(frozen=True)
class Request:
  """A request, see the flags of `dinojax curate`."""

  config: Any
  workdir: str | None = None
  engine: str = 'in_process'
  workers: int | None = None
  index: int | None = None
  count: int | None = None
  address: str = 'auto'
  resources: Sequence[str] = ()
  until: str | None = None
  inspect: int | None = None
  plan: str | None = None
  machine: str = 'cpu:64'
  compile_cache: str | None = None


def curate(request: Request) -> str:
  """Runs what is not done yet, and returns where the result is; or a plan.

  Raises:
    UserError: a mistake in the config, or what a stage says.
  """
  if request.plan:
    return '\n'.join(plan(request.config, request.plan, request.machine))
  if not request.workdir:
    raise errors.UserError(
        '--workdir is missing: give a folder for what the stages write')
  settings = recipe.read(request.config)
  stages = recipe.chain(settings, load)
  if request.until:
    names = [stage.name for stage in stages]
    if request.until not in names:
      raise errors.UserError(
          f'--stage={request.until} is not in this config: give one of '
          f'{", ".join(names)}')
    stages = stages[:names.index(request.until) + 1]
  if request.inspect and stages[-1].name != 'retrieve':
    raise errors.UserError(
        f'--inspect={request.inspect} draws what the stage retrieve finds: '
        'add --stage=retrieve, of a config that has it')
  engine = _engine(request)
  if '://' in request.workdir:
    raise errors.UserError(
        f'--workdir={request.workdir} is not a folder that every process can '
        'map: give one of a disk that all machines share')
  if request.compile_cache is not None:
    assemble.compile_cache(request.compile_cache)
  folder = pathlib.Path(paths.expand(request.workdir))
  try:
    folder.mkdir(parents=True, exist_ok=True)
  except OSError as error:
    raise errors.cannot_write(str(folder), error) from error
  with _held(folder, shared=request.engine == 'array'):
    places = chain.run(stages, str(folder), engine)
    out = f'pictures: {report.write(str(folder), stages, places)}\n'
    last = stages[-1].name
    if request.inspect:
      out += ''.join(f'look: {path}\n' for path in retrieval.write(
          str(folder), stages[-1], places[last], request.inspect))
    if last == 'materialize':
      _publish(folder, materialize.mixture(places[last]),
               os.path.relpath(places[last].folder, folder))
      return (f'{out}train on it: --config.data.train={curated.SCHEME}{folder} '
              '--config.data.validation= (it has no labels for k-NN)')
  return f'{out}{last} is in {places[last].folder}'


def plan(config: Any, count: str, machine: str) -> list[str]:
  """Lines that say what a config needs for so many images on a machine.

  Args:
    config: config of a curation.
    count: images, '17e9'.
    machine: see machines.parse.

  Raises:
    UserError: a mistake in the config, no number, no machine.
  """
  settings = recipe.read(config)
  try:
    images = float(count.replace('_', ''))
  except ValueError:
    images = math.nan
  if not 1 <= images <= _MOST_IMAGES:
    raise errors.UserError(
        f'--plan={count} is no number of images from 1 to {_MOST_IMAGES:g}: '
        'write 1.3e9')
  assumed = settings.plan
  where = machines.parse(machine, assumed)
  return costs.table(
      costs.of_recipe(settings, assumed, images), where, assumed)


def load(name: str) -> backbone_lib.Backbone:
  """The backbone of a name, on all devices of this process."""
  return models_lib.load(name)


def _engine(request: Request) -> chain.Engine:
  """The engine that is asked for.

  Raises:
    UserError: there is none of that name, or its members are not numbered.
  """
  workers = request.workers
  if workers is None:
    workers = len(os.sched_getaffinity(0))
  if request.engine == 'in_process':
    return in_process.InProcess(workers)
  if request.engine == 'array':
    if request.index is None or request.count is None:
      raise errors.UserError(
          '--engine=array needs --index=I and --count=N: which of how many '
          'members this one is')
    return array.Array(request.index, request.count, workers)
  if request.engine == 'ray':
    return on_ray.OnRay(request.address, _resources(request.resources))
  raise errors.UserError(
      f'--engine={request.engine} is not there: give one of '
      f'{", ".join(ENGINES)}')


def _resources(words: Sequence[str]) -> dict[str, float]:
  """Amounts by name, of words like TPU=4.

  Raises:
    UserError: no number.
  """
  out = {}
  for word in words:
    name, _, value = word.partition('=')
    try:
      out[name] = float(value)
    except ValueError as error:
      raise errors.UserError(
          f'--resources={word} is not a name and a number: write TPU=4'
      ) from error
  return out


def _publish(folder: pathlib.Path, mixture: Mapping[str, Any], where: str):
  """Writes the mixture of a workdir, with paths that begin there."""
  prefix = 'arrayrecord:'
  at = lambda name: (prefix + os.path.join(where, name.removeprefix(prefix))
                     if name.startswith(f'{prefix}{materialize.RECORDS}-')
                     else name)
  atomic.write_text(folder / curated.MIXTURE, json.dumps({
      key: [[at(name), share] for name, share in pairs]
      for key, pairs in mixture.items()}, indent=1))


@contextlib.contextmanager
def _held(folder: pathlib.Path, *, shared: bool):
  """A workdir for this process, or for the members of an array.

  Raises:
    UserError: another one is at work in it.
  """
  with open(folder / 'lock', 'w') as lock:
    try:
      fcntl.flock(lock, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX)
                  | fcntl.LOCK_NB)
    except OSError as error:
      raise errors.UserError(
          f'{folder} is in use by another `dinojax curate`: wait for it, or '
          'give another --workdir') from error
    yield
