"""Whether a run ends in the same bits when it is run again, or killed.

  python -m bench.repeat --config=configs/vits.py --folder=/tmp/repeat \\
    --set train.deterministic=True model.attention=cudnn

Four runs of one config: one; one more with its compiled programs; one that
compiles its own; and one that is killed with SIGKILL half-way, after a save,
and started again. Prints one JSON line: `again`, `compiled_again` and `killed`
are the arrays of the last checkpoint that differ from the first run's, of
`arrays`, with the largest difference relative to an array's largest entry.
"""

import argparse
import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import time
import warnings

import jax
import numpy as np
from orbax.checkpoint import v1 as ocp


def main() -> int:
  """Runs, compares, prints."""
  parser = argparse.ArgumentParser(
      description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
  parser.add_argument('--config', required=True, help='configs/NAME.py[:ARG]')
  parser.add_argument('--folder', required=True,
                      help='for the runs, which are deleted; must not exist')
  parser.add_argument('--steps', type=int, default=40)
  parser.add_argument('--set', nargs='*', default=[], metavar='KEY=VALUE')
  options = parser.parse_args()
  folder = pathlib.Path(options.folder)
  folder.mkdir(parents=True)
  try:
    line = measure(folder, options)
  except subprocess.CalledProcessError as error:
    print(f'error: {error}: {folder} has its log', file=sys.stderr)
    return 2
  print(json.dumps(line))
  shutil.rmtree(folder)
  return 0


def measure(folder: pathlib.Path, options: argparse.Namespace) -> dict:
  """What is printed.

  Raises:
    CalledProcessError: a run that did not end well.
  """
  run = lambda name, cache: subprocess.run(
      command(folder, name, cache, options), check=True,
      stdout=open(folder / f'{name}.log', 'a'), stderr=subprocess.STDOUT)
  run('first', 'cache')
  run('again', 'cache')
  run('compiled_again', 'other_cache')
  half = options.steps // 2
  killed_at = kill(command(folder, 'killed', 'cache', options),
                   folder / 'killed' / 'checkpoints' / str(half),
                   folder / 'killed.log')
  run('killed', 'cache')
  log = (folder / 'killed.log').read_text()
  if f'resumed from step {half}' not in log:
    raise RuntimeError(f'the killed run did not resume from {half}: {log}')
  # Orbax: that the devices are those of the run.
  warnings.filterwarnings('ignore', message='Sharding info not provided')
  first = arrays(folder / 'first', options.steps)
  gaps = {name: compare(first, arrays(folder / name, options.steps))
          for name in ('again', 'compiled_again', 'killed')}
  return {
      'bench': 'repeat', 'config': options.config, 'set': options.set,
      'device': jax.devices()[0].device_kind, 'steps': options.steps,
      'killed_after_save_of': half, 'killed_at': killed_at,
      'arrays': len(first), **gaps}


def command(folder: pathlib.Path, name: str, cache: str, options) -> list[str]:
  """The program of one run."""
  return [
      sys.executable, '-m', 'dinojax.main', f'--config={options.config}',
      f'--workdir={folder / name}', f'--compile_cache={folder / cache}',
      f'--config.train.total_steps={options.steps}',
      f'--config.checkpoint.every_steps={options.steps // 4}',
      '--config.log.every_steps=1',
      *(f'--config.{change}' for change in options.set)]


def kill(argv: list[str], save: pathlib.Path, log: pathlib.Path) -> str:
  """Kills a run once a checkpoint is whole; returns its last line."""
  with open(log, 'w') as out:
    process = subprocess.Popen(argv, stdout=out, stderr=subprocess.STDOUT)
    while process.poll() is None and not save.is_dir():
      time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    if process.wait() != -signal.SIGKILL:
      raise subprocess.CalledProcessError(process.returncode, argv)
  steps = [x for x in log.read_text().splitlines() if x.startswith('step')]
  return steps[-1].split(' · ')[0]


def arrays(workdir: pathlib.Path, step: int) -> list[np.ndarray]:
  """All arrays of a checkpoint: weights, optimizer, teacher, centres."""
  with ocp.training.Checkpointer(workdir / 'checkpoints') as checkpoints:
    parts = checkpoints.load_checkpointables(step)
  plain = lambda x: jax.random.key_data(x) if jax.dtypes.issubdtype(
      x.dtype, jax.dtypes.prng_key) else x
  return [np.asarray(plain(x)) for x in jax.tree.leaves(parts)
          if hasattr(x, 'dtype')]


def compare(wants: list[np.ndarray], gots: list[np.ndarray]) -> dict:
  """How many arrays differ, and by how much at most."""
  differ, largest = 0, 0.0
  for want, got in zip(wants, gots, strict=True):
    if want.tobytes() == got.tobytes():
      continue
    differ += 1
    want, got = want.astype(np.float64), got.astype(np.float64)
    largest = max(largest, float(
        np.abs(got - want).max() / max(np.abs(want).max(), 1e-30)))
  return {'differ': differ, 'largest': largest}


if __name__ == '__main__':
  os.environ.setdefault('PYTHONUNBUFFERED', '1')
  sys.exit(main())
