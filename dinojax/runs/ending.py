"""The end of a run: weights for others, its report, and last its results.

Until results.json is there, the same command does all of it again.
"""

from collections.abc import Mapping

from etils import epath

from dinojax.core import errors
from dinojax.core import output
from dinojax.core import text
from dinojax.engine import loop
from dinojax.features import backbone
from dinojax.interop import reading
from dinojax.parallel import processes
from dinojax.runs import exports
from dinojax.runs import results
from dinojax.runs import workdir as workdir_lib
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
  except errors.UserError as error:
    if processes.is_first():
      output.warn(f'no weights are written for others: {error}')
    return {}


def _report(folder: epath.Path, weights: Mapping[str, reading.Weights]):
  """Writes the report; what is wrong with it ends no run."""
  def models():
    if not weights:
      raise errors.UserError('the weights could not be read')
    return {f'{folder.name} {name}' if name != sections.ALONE else folder.name:
            backbone.Backbone.of(student, source=str(folder))
            for name, student in weights.items()}

  try:
    page.write(str(folder), models=models, has_ended=True)
  except errors.UserError as error:
    output.warn(f'no report: {text.printable(str(error))}; `dinojax report '
                f'--workdir={folder}` writes it')
