"""What dividing a step over CPU devices costs: the same batch on 1 and on 8.

  python -m bench.devices --config=configs/vits.py --steps=3 --set \\
    train.batch_size=16 train.group_images=2 koleo.group_images=2 \\
    crops.global_px=112 crops.local_px=56

Processor time of all cores for a step, in turns, in one process. Prints one
JSON line; ratios are to one device and would be 1 if division were free.
"""

import argparse
import json
import time

import jax

from bench import step_speed
from dinojax.parallel import mesh as mesh_lib
from dinojax.planning import throughput
from dinojax.train import method as method_lib

_DEVICES = 8
# data × fsdp: the batch divided, the parameters as well, and both.
_SHAPES = ((1, 1), (8, 1), (2, 4), (1, 8))
_ROUNDS = 2


def main():
  """Measures and prints."""
  parser = argparse.ArgumentParser(
      description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
  parser.add_argument('--config', required=True, help='configs/NAME.py[:ARG]')
  parser.add_argument('--attention', default='auto')
  parser.add_argument('--steps', type=int, default=3)
  parser.add_argument('--set', nargs='*', default=[], metavar='KEY=VALUE')
  options = parser.parse_args()
  jax.config.update('jax_num_cpu_devices', _DEVICES)
  settings = step_speed.read(options)
  runs = {shape: start(settings, shape) for shape in _SHAPES}
  spent = {shape: [] for shape in _SHAPES}
  for _ in range(_ROUNDS):
    for shape, run in runs.items():
      spent[shape].append(run(options.steps))
  seconds = {shape: min(times) for shape, times in spent.items()}
  name = lambda shape: f'{shape[0]}x{shape[1]}'
  print(json.dumps({
      'bench': 'devices', 'config': options.config, 'set': options.set,
      'cpu_s_per_step': {name(s): round(x, 2) for s, x in seconds.items()},
      'ratio_to_one_device': {
          name(s): round(x / seconds[1, 1], 3) for s, x in seconds.items()}}))


def start(settings, shape: tuple[int, int]):
  """A function that runs steps on a mesh: its processor time of one."""
  mesh = mesh_lib.make(*shape, devices=jax.devices()[:shape[0] * shape[1]])
  with mesh_lib.activate(mesh):
    method = method_lib.build(settings, mesh, epoch_steps=1000)
    program = throughput.compiled(method, mesh)

  def run(steps: int) -> float:
    with mesh_lib.activate(mesh):
      return throughput.step_seconds(
          program, method, mesh, steps, clock=time.process_time)

  return run


if __name__ == '__main__':
  main()
