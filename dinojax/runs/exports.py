"""Weights of a run that has ended, for others: WORKDIR/export.

The EMA with its config, as `dinojax.load` reads it, a model card, and formats
of other libraries in folders of their names. Of several students each has a
folder of its own.
"""

from collections.abc import Mapping
import shlex

from etils import epath

from dinojax.core import atomic
from dinojax.core import errors
from dinojax.core import output
from dinojax.core import text
from dinojax.engine import loop
from dinojax.interop import reading
from dinojax.interop import store
from dinojax.interop import writing
from dinojax.runs import cards
from dinojax.runs import models
from dinojax.train import sections
from dinojax.train import settings as settings_lib

FOLDER = 'export'  # in the workdir


def formats(settings: settings_lib.Settings) -> list[str]:
  """The formats that are written besides our own.

  Raises:
    UserError: one is not known.
  """
  names = [name.strip() for name in settings.export.formats.split(',')
           if name.strip()]
  for name in names:
    if name not in writing.FORMATS:
      raise errors.UserError(
          f'export.formats={settings.export.formats}: {name!r} is not known: '
          f'use any of {",".join(writing.FORMATS)}')
  if names and not settings.export.weights:
    raise errors.UserError(
        f'export.formats={settings.export.formats} is written only with '
        'export.weights=True: set it, or leave the formats out')
  return names


def check(settings: settings_lib.Settings):
  """Checks before training that all formats can hold the models.

  Raises:
    UserError: one is not known, or cannot.
  """
  for name in formats(settings):
    for student, its_settings in settings.each.items():
      try:
        writing.check(its_settings.model.inference(), name)
      except errors.UserError as error:
        raise errors.UserError(
            f'export.formats={settings.export.formats}'
            + ('' if student == sections.ALONE else f' of {student}')
            + f': {error}') from error


def read(folder: epath.Path,
         settings: settings_lib.Settings) -> dict[str, reading.Weights]:
  """The EMA of every student at the last step, on every process.

  Raises:
    UserError: a checkpoint is damaged.
  """
  return {name: models.read_run(models.CheckpointName(str(folder), name))
          for name in settings.each}


def write(folder: epath.Path, settings: settings_lib.Settings,
          result: loop.Result, weights: Mapping[str, reading.Weights]):
  """Writes the export of a run.

  What cannot be written is a warning, with the command that does it later: the
  checkpoints are there.

  Args:
    folder: workdir.
    settings: config of the run.
    result: how it ended.
    weights: weights by student, see `read`.
  """
  for name, student in weights.items():
    alone = name == sections.ALONE
    place = folder / FOLDER if alone else folder / FOLDER / name
    source = folder if alone else folder / name
    try:
      _write(place, student, settings, name, result, source)
    except Exception as error:  # noqa: BLE001 (of any kind: training has ended)
      command = shlex.join(['dinojax', 'convert', 'import',
                            f'--source={source}', '--out=DIR'])
      output.warn(
          f'{place} could not be written: {text.printable(str(error))}. The '
          f'run has ended well, and its checkpoints are there: `{command}` '
          'writes the same')


def _write(place: epath.Path, weights: reading.Weights,
           settings: settings_lib.Settings, name: str, result: loop.Result,
           source: epath.Path):
  with store.put(place, store.DESCRIPTION) as local:
    store.save(str(local), weights)
    for kind in formats(settings):
      try:
        for line in writing.write(str(local / kind), weights, kind):
          print(f'export: {text.visible(line)}', flush=True)
      except Exception as error:  # noqa: BLE001 (of other libraries, too)
        output.warn(f'export.formats: {kind} was not written: '
                    f'{text.printable(str(error))}')
    atomic.write_text(local / cards.FILE, cards.card(
        weights, settings, name, result, source))
