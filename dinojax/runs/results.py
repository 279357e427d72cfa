"""Results of a run: results.json, and the last message to the user."""

import json
import shlex
import time

from etils import epath

from dinojax.core import atomic
from dinojax.core import log
from dinojax.engine import loop
from dinojax.parallel import processes
from dinojax.runs import workdir as workdir_lib
from dinojax.runs.report import page
from dinojax.train import settings as settings_lib


def write(folder: epath.Path, result: loop.Result):
  """Writes results.json: k-NN accuracies, steps, seconds and date."""
  knn = {name.replace('knn/', ''): round(value, 3)
         for name, value in result.evaluation.items() if 'knn/' in name}
  atomic.write_text(folder / workdir_lib.RESULTS, json.dumps(
      {'knn_top1_pct': knn, 'steps': result.step,
       'seconds': round(result.seconds, 1),
       'time': time.strftime('%Y-%m-%dT%H:%M:%SZ', time.gmtime())}, indent=1))


def tell_ended(result: loop.Result, folder: epath.Path) -> loop.Result:
  """Says that there was nothing to do, and what the run came to."""
  if processes.is_first():
    print(f'resumed from step {result.step} of {folder}, which is its last: '
          'nothing to do', *(f'{name} {value:.2f}' for name, value
                             in result.evaluation.items()),
          sep=' · ', flush=True)
  return result


def tell_finished(result: loop.Result, settings: settings_lib.Settings,
                  folder: epath.Path):
  """Says where the numbers are, and how to see what was learned."""
  run = next((folder / name for name in settings.students), folder)
  images = settings.data.validation or settings.data.mixture[0][0]
  words = ['dinojax', 'pca', f'--workdir={run}', f'--images={images}']
  report = folder / page.FILE
  print(f'finished {result.step} steps in {log.duration(result.seconds)}: '
        f'{folder / workdir_lib.RESULTS}'
        + (f', {report}' if report.exists() else '')
        + f'; `{shlex.join(words)}` draws what it has learned', flush=True)
