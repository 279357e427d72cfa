"""Protocols without training on miniatures, in one process or in two.

  python -m tests.evals.matched DIR OUT   in one of two processes
"""

import pathlib
import sys

import jax
import numpy as np

from dinojax.core import errors
from dinojax.evals import protocol
from dinojax.evals import registry
from dinojax.features import backbone
from dinojax.features import preprocessing
from dinojax.models import vit
from dinojax.parallel import mesh as mesh_lib
from dinojax.parallel import processes
from tests.evals.sets import made
from tests.interop import cases

CONFIG = vit.ViTConfig(48, 1, 2, 8, position='rope', num_registers=2)
ASKED = {
    'correspondence': {'keypoint_patches': 8, 'patches': 8, 'matches': 20},
    'tokencut': {'features': 'keys', 'tau': 0.5},
    'tracking': {'short_patches': (6,), 'context': 2, 'radius': 3}}


def sets(root: pathlib.Path) -> dict[str, tuple[str, ...]]:
  """Specs of all sets, written below a folder."""
  return {
      'correspondence': (
          made.keypoints(root), made.homographies(root),
          f'spair:{made.spair(root / "spair")}',
          f'navi:{made.navi(root / "navi")}'),
      'tokencut': (made.boxes(root), f'voc2007:{made.voc(root / "voc")}'),
      'tracking': (f'videos:{made.videos(root / "plain")}',
                   f'davis:{made.davis(root / "DAVIS")}')}


def measure(name: str, specs: tuple[str, ...], devices=None, config=CONFIG,
            **asked) -> list[protocol.Measured]:
  """What a protocol measures on sets with a random backbone."""
  settings = registry.read({name: ASKED[name] | asked | {'test': specs}})
  model = backbone.Backbone.of(
      cases.weights(config), mesh_lib.make(devices=devices))
  registry.check(name, settings, model.config)
  progress = []
  out = registry.run(name, protocol.Job(
      model, registry.opened(name, settings), preprocessing.Preprocessing(),
      None, progress=progress.append), settings)
  assert jax.process_count() > 1 or sum(progress) == (
      registry.PROTOCOLS[name].passes(getattr(settings, name), {
          'test': sum(len(each) for each in registry.opened(
              name, settings)['test'])}))
  return out


def columns(measured: list[protocol.Measured]) -> dict[str, np.ndarray]:
  """Every column and picture of every set."""
  return {f'{i} {name}': array for i, part in enumerate(measured)
          for name, array in (part.rows | dict(part.pictures)).items()}


def main(root: str, out: str):
  """Writes what all protocols measure, or says what is wrong."""
  processes.initialize()
  specs = {
      'correspondence': (f'keypoints:{root}/points.csv',
                         f'homographies:{root}/pairs.csv',
                         f'spair:{root}/spair', f'navi:{root}/navi'),
      'tokencut': (f'boxes:{root}/boxes.csv', f'voc2007:{root}/voc'),
      'tracking': (f'videos:{root}/plain', f'davis:{root}/DAVIS')}
  try:
    arrays = {f'{name} {key}': array for name in specs
              for key, array in columns(measure(name, specs[name])).items()}
  except errors.UserError as error:
    print('error:', error, flush=True)
  else:
    if processes.is_first():
      np.savez(out, **{
          key.replace('/', '|'): array for key, array in arrays.items()})
    print('measured', flush=True)
  jax.distributed.shutdown()


if __name__ == '__main__':
  jax.config.update('jax_num_cpu_devices', 4)
  jax.config.update('jax_default_matmul_precision', 'highest')
  main(*sys.argv[1:])
