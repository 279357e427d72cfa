"""The training step of a config on this machine: speed, MFU, memory.

  python -m bench.step_speed --config=configs/vitl.py --attention=cudnn \\
    --set train.batch_size=64 model.patch_px=14 crops.local_px=98

The step is the one that training runs, photometric augmentation included, on
made-up images that are on the device already. Prints one JSON line; MFU is
the model's FLOPs by formula, without recomputation, over the chip's dense
bfloat16 peak.
"""

import argparse
import ast
import dataclasses
import importlib
import json
import sys

from dinojax.core import chips
from dinojax.core import errors
from dinojax.parallel import mesh as mesh_lib
from dinojax.planning import throughput
from dinojax.train import method as method_lib
from dinojax.train import settings as settings_lib


def main() -> int:
  """Measures and prints."""
  parser = argparse.ArgumentParser(
      description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
  parser.add_argument('--config', required=True, help='configs/NAME.py[:ARG]')
  parser.add_argument('--attention', default='auto')
  parser.add_argument('--steps', type=int, default=20)
  parser.add_argument('--set', nargs='*', default=[], metavar='KEY=VALUE')
  options = parser.parse_args()
  try:
    print(json.dumps(measure(options)))
  except errors.UserError as error:
    print(f'error: {error}', file=sys.stderr)
    return 2
  return 0


def measure(options: argparse.Namespace) -> dict:
  """What is printed.

  Raises:
    UserError: the config, or a step that does not fit.
  """
  settings = read(options)
  mesh = mesh_lib.make()
  settings_lib.check_devices(settings, mesh.size)
  with mesh_lib.activate(mesh):
    method = method_lib.build(
        settings, mesh, settings.train.epoch_steps or 1000)
    program = throughput.compiled(method, mesh)
    seconds = throughput.step_seconds(program, method, mesh, options.steps)
  batch, flops = settings.train.batch_size, throughput.step_flops(method, mesh)
  device = mesh.devices.flat[0]
  chip = chips.of_device_kind(device.device_kind)
  peak = chip.bf16_flops / chip.cores * mesh.size if chip else None
  used = device.memory_stats() or {}
  return {
      'bench': 'step_speed', 'config': options.config, 'set': options.set,
      'device': device.device_kind, 'devices': mesh.size,
      'attention': method.settings.model.attention,
      'dtype': method.settings.model.dtype, 'remat': settings.model.remat,
      'batch': batch, 'steps': options.steps,
      'step_ms': round(1e3 * seconds, 1),
      'images_per_s': round(batch / seconds, 1),
      'model_tflops_per_s': round(flops / seconds / 1e12, 2),
      'mfu_pct': round(100 * flops / seconds / peak, 1) if peak else None,
      'peak_gib_planned': round(program.peak_gib, 2),
      'peak_gib_used': round(used['peak_bytes_in_use'] / 2**30, 2)
                       if 'peak_bytes_in_use' in used else None,
      'compile_s': round(program.compile_s, 1)}


def read(options: argparse.Namespace) -> settings_lib.Settings:
  """The settings of a config with the changes that the options ask for."""
  path, _, arg = options.config.partition(':')
  module = importlib.import_module(
      path.removesuffix('.py').replace('/', '.'))
  config = module.get_config(arg)
  changes = {}
  for change in options.set:
    key, _, text = change.partition('=')
    changes[key] = value(text)
  config.update_from_flattened_dict(changes)
  settings = settings_lib.read(config)
  if options.attention == 'auto':
    return settings
  return dataclasses.replace(settings, model=dataclasses.replace(
      settings.model, attention=options.attention))


def value(text: str):
  """A literal of Python, or else the text."""
  try:
    return ast.literal_eval(text)
  except (ValueError, SyntaxError):
    return text


if __name__ == '__main__':
  sys.exit(main())
