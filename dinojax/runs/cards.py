"""The model card of an export: what it is, and what it was made from."""

from collections.abc import Iterator

from etils import epath

from dinojax import __version__
from dinojax.core import log
from dinojax.core import tree
from dinojax.data import identity
from dinojax.engine import loop
from dinojax.evals import learned
from dinojax.interop import reading
from dinojax.runs import models
from dinojax.train import sections
from dinojax.train import settings as settings_lib

FILE = 'README.md'  # the name by which hubs show it


def card(weights: reading.Weights, settings: settings_lib.Settings, name: str,
         result: loop.Result, source: epath.Path) -> str:
  """The card as Markdown, with a line for the licence to fill in.

  Args:
    weights: weights that are exported.
    settings: config of the run.
    name: name of the student.
    result: how the run ended.
    source: the run, or a student of it, as `dinojax.load` reads it.
  """
  student = settings.each[name]
  size = tree.num_elements(weights.params) / 1e6
  parts = [
      '---', 'library_name: dinojax',
      'pipeline_tag: image-feature-extraction',
      'license: unknown  # fill it in; that of the data may bind you',
      '---', '',
      f'# {source.name}', '',
      f'{weights.config.describe()}; {size:.3g} M parameters. The average of '
      'the weights over training (EMA), with its heads.', '',
      '```python', 'import dinojax', "model = dinojax.load('.')  # this folder",
      "features = model(model.preprocess(['a.jpg']))", '```', '',
      '## Training', '', *_training(student, settings, result, source), '',
      '## Data', '', *_data(settings, source), '',
      '## Evaluation', '', *_evaluation(name, result), '',
      '## Limits', '',
      'Not said by the run: where the images come from, who is in them, and '
      'what the features should not be used for. Say it here.', '']
  return '\n'.join(parts)


def _training(student: settings_lib.Settings, settings: settings_lib.Settings,
              result: loop.Result, source: epath.Path) -> Iterator[str]:
  crops, train = settings.crops, settings.train
  yield f'- {result.step} steps of {train.batch_size} images, seed '\
        f'{settings.seed}, {log.duration(result.seconds)}'
  terms = [term for term in student.terms() if getattr(student, term).is_on]
  yield f'- losses: {", ".join(terms)}'
  yield (f'- crops: {crops.num_global} of {crops.global_px} pixels, '
         f'{crops.num_local} of {crops.local_px}')
  if settings.distillation.is_on:
    yield ('- a frozen network teaches: '
           f'{settings.distillation.source or settings.distillation.model}')
  if student.init.source:
    yield f'- started from {student.init.source}'
  yield f'- dinojax {__version__}; all values: {models.CONFIG} of the run'


def _data(settings: settings_lib.Settings,
          source: epath.Path) -> Iterator[str]:
  for spec, weight in settings.data.mixture:
    count = identity.count(source, spec) or identity.count(
        source.parent, spec)
    yield f'- `{spec}`' + (f', {count} images' if count else '') + (
        f', weight {weight:g}' if len(settings.data.mixture) > 1 else '')


def _evaluation(name: str, result: loop.Result) -> Iterator[str]:
  prefix = '' if name == sections.ALONE else f'{name}/'
  rows = [(text, result.evaluation.get(f'{prefix}{key}'))
          for key, text in learned.NAMES.items()]
  rows = [(text, value) for text, value in rows if value is not None]
  if not rows:
    yield 'None: the run had no labelled validation images.'
    return
  yield from ('| features | k-NN accuracy, % |', '|---|---|')
  for text, value in rows:
    yield f'| {text} | {value:.2f} |'
