"""The end of a run: weights for others, its report, and last its results.

Until results.json is there, the same command does all of it again.
"""

from collections.abc import Mapping

from etils import epath

from dinojax.core import errors
from dinojax.core import output
from dinojax.core import text
from dinojax.engine import loop
from dinojax.interop import reading
from dinojax.parallel import mesh as mesh_lib
from dinojax.parallel import processes
from dinojax.runs import exports
from dinojax.runs import results
from dinojax.runs import workdir as workdir_lib
from dinojax.runs.report import gallery
from dinojax.runs.report import page
from dinojax.train import sections
from dinojax.train import settings as settings_lib


def end(folder: epath.Path, settings: settings_lib.Settings,
        result: loop.Result):
  """Writes what a run leaves; all processes read, the first one writes.

  Raises:
    UserError: results.json cannot be written.
  """
  weights = _weights(folder, settings)
  if not processes.is_first():
    return
  # Alone from here on: programs of all devices would wait for the others.
  with mesh_lib.activate(mesh_lib.make(devices=mesh_lib.one_device())):
    if settings.export.weights:
      exports.write(folder, settings, result, weights)
    if settings.report.at_end:
      _report(folder, weights)
  with workdir_lib.writable(folder):
    results.write(folder, result)
  results.tell_finished(result, settings, folder)


def _weights(folder: epath.Path, settings: settings_lib.Settings
             ) -> Mapping[str, reading.Weights]:
  """The weights that are written and drawn; {} with a warning without them."""
  if not (settings.export.weights or settings.report.at_end):
    return {}
  try:
    return exports.read(folder, settings)
  except Exception as error:  # noqa: BLE001 (of any kind: training has ended)
    if processes.is_first():
      output.warn(f'no weights are written for others: {_told(error)}')
    return {}


def _report(folder: epath.Path, weights: Mapping[str, reading.Weights]):
  """Writes the report; what is wrong with it ends no run."""
  def models():
    if not weights:
      raise errors.UserError('the weights could not be read')
    return {f'{folder.name} {name}' if name != sections.ALONE else folder.name:
            gallery.placed(student, str(folder))
            for name, student in weights.items()}

  try:
    page.write(str(folder), models=models, has_ended=True)
  except Exception as error:  # noqa: BLE001 (of any kind: training has ended)
    output.warn(f'no report: {_told(error)}; `dinojax report '
                f'--workdir={folder}` writes it')


def _told(error: Exception) -> str:
  """An error as part of a sentence, with its kind where it is no sentence."""
  if isinstance(error, errors.UserError | OSError):
    return text.printable(str(error))
  return text.printable(f'{type(error).__name__}: {error}')
