"""Frozen features, measured: models through protocols, to one table.

Every number is a line of results.jsonl with the key of its protocol: the
values, the sets and their counts. What has a line is not measured again, so
the same command goes on where it was stopped. Rows of single images are kept
in rows/.
"""

from collections.abc import Mapping, Sequence
import dataclasses
import itertools
import time
from typing import Any

from etils import epath

from dinojax.core import atomic
from dinojax.core import errors
from dinojax.core import log
from dinojax.core import paths
from dinojax.core import text
from dinojax.data import identity as identity_lib
from dinojax.evals import protocol as protocol_lib
from dinojax.evals import registry
from dinojax.evals import stored_heads
from dinojax.features import backbone as backbone_lib
from dinojax.features import preprocessing
from dinojax.features import store as store_lib
from dinojax.features import stream
from dinojax.parallel import mesh as mesh_lib
from dinojax.parallel import processes
from dinojax.runs import models as models_lib
from dinojax.runs import scores
from dinojax.runs import workdir as workdir_lib
from dinojax.runs.report import page

WORK, FEATURES = 'work', 'features'  # what a later start needs
HEADS = 'heads'  # that were trained, to be used again
_SIZES = (256, 224)


@dataclasses.dataclass(frozen=True)
class Request:
  """A request, see the flags of `dinojax evaluate`."""

  models: Sequence[str]
  protocols: Sequence[str] = ()
  suite: str | None = None
  config: Any = None
  train: str | None = None
  validation: str | None = None
  test: Sequence[str] = ()
  sizes: Sequence[str] = ()
  cache: bool = False
  predictions: bool = False
  out: str | None = None


def evaluate(request: Request) -> str:
  """Measures models; all processes take part, the first one writes.

  Returns:
    The table, which is in the folder as well; '' on other processes.

  Raises:
    UserError: a mistake in what is asked for, before anything is measured;
      sources or models that cannot be read.
  """
  processes.initialize()
  names = registry.chosen(request.protocols, request.suite)
  settings = registry.read(request.config or {})
  if request.cache or request.suite in registry.CACHED_SUITES:
    settings = registry.cached(settings)
  settings = _with_data(settings, request)
  at_sizes = _at_sizes(settings, request.sizes)
  folder = epath.Path(paths.expand(request.out or default_out(
      request.models)))
  names = _with_sets(names, request, settings)
  opened = {name: registry.opened(name, settings) for name in names}
  with workdir_lib.writable(folder):
    folder.mkdir(parents=True, exist_ok=True)
  for name in request.models:
    pinned = models_lib.at_its_last_step(paths.expand(name))
    model = backbone_lib.Backbone.of(
        models_lib.read(pinned), mesh_lib.make(), source=pinned)
    for protocol in names:
      registry.check(protocol, settings, model.config)
    for of_size in at_sizes:
      for protocol in names:
        _measure(protocol, model, of_size, opened[protocol], folder)
  if not processes.is_first():
    return ''
  if request.predictions:
    scores.write_predictions(folder, _names(opened))
  table = scores.markdown(scores.read(folder))
  atomic.write_text(folder / scores.TABLE, table)
  page.write_evaluation(folder)
  return table


def _names(opened: Mapping[str, Mapping[str, tuple]]) -> dict[str, list[str]]:
  """Names of the images of every source that lists them, by its spec."""
  out = {}
  for source in itertools.chain.from_iterable(
      itertools.chain.from_iterable(sets.values()) for sets in opened.values()):
    names = identity_lib.lines(source)
    if len(names) == len(source):
      out[source.spec] = names
  return out


def _at_sizes(settings: registry.Settings, sizes: Sequence[str]
              ) -> list[registry.Settings]:
  """The settings at every size that is asked for.

  Raises:
    UserError: a size is no number of pixels.
  """
  if not sizes:
    return [settings]
  for size in sizes:
    if not size.isdecimal() or not int(size):
      raise errors.UserError(
          f'--sizes={size} is no number of pixels: give --sizes=224,448')
  return [dataclasses.replace(settings, data=dataclasses.replace(
      settings.data, crop_px=px, resize_px=round(px * _SIZES[0] / _SIZES[1])))
          for px in map(int, sizes)]


def _with_sets(names: Sequence[str], request: Request,
               settings: registry.Settings) -> list[str]:
  """The protocols without those of a suite whose sets nobody gives.

  Raises:
    UserError: nothing is left.
  """
  left_out = {name: registry.missing(name, settings) for name in names
              if name not in request.protocols}
  for name, sentences in left_out.items():
    if sentences and processes.is_first():
      print(f'{name} is left out: {sentences[0]}', flush=True)
  kept = [name for name in names if not left_out.get(name)]
  if not kept:
    raise errors.UserError('\n'.join(
        sentence for sentences in left_out.values() for sentence in sentences))
  return kept


def default_out(models: Sequence[str]) -> str:
  """The folder of results: in the run that is evaluated, else here."""
  run = models_lib.find_run(models[0]) if len(models) == 1 else None
  return f'{run.workdir}/evaluation' if run else 'evaluation'


def _with_data(settings: registry.Settings,
               request: Request) -> registry.Settings:
  """Sources by flag; without any, those of the run that is evaluated.

  Raises:
    UserError: a folder that is no run.
  """
  given = {name: getattr(request, name)
           for name in ('train', 'validation', 'test')
           if getattr(request, name)}
  if 'test' in given:
    given['test'] = tuple(given['test'])
  data = dataclasses.replace(settings.data, **given)
  run = models_lib.find_run(request.models[0])
  if run:
    of_run = models_lib.read_workdir(run.workdir)
    if not (data.train or data.test) and (
        of_run.knn.validation or of_run.data.validation):
      data = dataclasses.replace(
          data, train=of_run.knn.train or of_run.data.mixture[0][0],
          test=(of_run.knn.validation or of_run.data.validation,))
    data = dataclasses.replace(
        data, resize_px=data.resize_px or of_run.knn.resize_px,
        crop_px=data.crop_px or of_run.knn.crop_px)
  return dataclasses.replace(settings, data=dataclasses.replace(
      data, resize_px=data.resize_px or _SIZES[0],
      crop_px=data.crop_px or _SIZES[1]))


def _measure(name: str, model: backbone_lib.Backbone,
             settings: registry.Settings, opened: Mapping[str, Any],
             folder: epath.Path):
  """Runs a protocol for a model, unless it has its lines already."""
  sets = {role: [[each.spec, len(each), getattr(each, 'digest', '')]
                 for each in several]
          for role, several in opened.items() if several}
  section, data = getattr(settings, name), settings.data
  pixels = getattr(registry.PROTOCOLS[name], 'PIXELS', None)
  sizes = [] if pixels else [data.resize_px, data.crop_px]
  key = protocol_lib.key(name, section, sets | {
      'px': [*sizes, settings.reading.max_pixels]} | registry.contents(
          name, settings))
  identity = {'model': model.source, 'weights': store_lib.digest(
      model.config, model.params), 'protocol': name, 'key': key,
              'px': pixels(section) if pixels else data.crop_px}
  if processes.of_first(str(scores.is_done(folder, identity))) == 'True':
    return
  sizes = preprocessing.Preprocessing(data.resize_px, data.crop_px)
  sizes.check(model.config)
  total = registry.PROTOCOLS[name].passes(
      section, {role: sum(len(each) for each in several)
                for role, several in opened.items()})
  began, work = time.monotonic(), folder / WORK / (
      f'{name}-{key}-{identity["weights"]}')
  if processes.is_first():
    print(f'{name} of {text.printable(model.source)}: {total} images through '
          'the backbone', flush=True)
  with log.Bar(total) as bar:
    counted = _Count(bar.show)
    measured = registry.run(name, protocol_lib.Job(
        model, opened, sizes, work, identity['weights'],
        folder / WORK / FEATURES, stream.Reading(
            settings.reading.batch_size, settings.reading.num_threads,
            settings.reading.num_workers, settings.reading.max_pixels),
        bar.say if processes.is_first() else lambda _: None, counted.add),
        settings)
  if processes.is_first():
    kept = next((part.head for part in measured if part.head), None)
    if kept:
      place = folder / HEADS / f'{name}-{key}-{identity["weights"]}'
      stored_heads.save(str(place), kept)
      print(f'the head is in {place}; on other images: dinojax predict '
            f'--model={text.printable(model.source)} --head={place} '
            '--source=folder:DIR --out=OUT', flush=True)
    scores.keep(folder, identity, measured, time.monotonic() - began)


class _Count:
  """Images so far, shown whenever some are added."""

  def __init__(self, show):
    self._show, self._done = show, 0
    show(0)

  def add(self, count: int):
    """Shows `count` more."""
    self._done += count
    self._show(self._done)
