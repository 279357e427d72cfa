"""What a config needs on a machine, before there is one."""

from collections.abc import Mapping
import os
from typing import Any

import jax
import numpy as np

from dinojax.core import chips
from dinojax.core import errors
from dinojax.core import tree
from dinojax.parallel import hlo
from dinojax.parallel import mesh as mesh_lib
from dinojax.train import flops
from dinojax.train import program
from dinojax.train import recipe as recipe_lib
from dinojax.train import settings as settings_lib

_GIB = 2**30


def devices(topology: str) -> list:
  """Devices of a topology that need not be here.

  Args:
    topology: 'v5e:16x16', or 'cpu:8'.

  Raises:
    UserError: unknown, or libtpu is not installed.
  """
  if topology.startswith('cpu:') and topology[4:].isdigit():
    jax.config.update('jax_num_cpu_devices', int(topology[4:]))
    return jax.devices('cpu')
  chips.of_topology(topology)
  # Several processes may compile; none of them opens a TPU.
  os.environ.setdefault('ALLOW_MULTIPLE_LIBTPU_LOAD', '1')
  os.environ.setdefault('TPU_SKIP_MDS_QUERY', '1')
  from jax.experimental import topologies
  try:
    import libtpu  # noqa: F401  jax finds it by itself
  except ImportError as error:
    raise errors.UserError(
        f'--topology={topology} needs the TPU compiler: `pip install '
        'libtpu`; it runs on any machine') from error
  try:
    return list(topologies.get_topology_desc(
        platform='tpu', topology_name=topology).devices)
  except (RuntimeError, ValueError) as error:
    raise errors.UserError(
        f'--topology={topology} is not known to libtpu: '
        f'{str(error).splitlines()[0][:200]}; sizes are such as v5e:2x4, '
        'v5e:16x16, v5p:4x4x4, v6e:4x4') from error


def compiled(config: Any, topology: str) -> dict:
  """Compiles the step of a config and measures the program.

  Args:
    config: ConfigDict, see train.settings.
    topology: see `devices`.

  Returns:
    Numbers by name, JSON-able; memory is that of one device.

  Raises:
    UserError: the config, the topology, or the two together.
  """
  settings = settings_lib.read(config)
  found = devices(topology)
  mesh = mesh_lib.make(settings.mesh.data, settings.mesh.fsdp, devices=found)
  settings_lib.check_devices(settings, mesh.size)
  epoch_steps = settings.train.epoch_steps or 1
  recipe, lowered = program.of_config(settings, mesh, epoch_steps)
  step = lowered.compile(mesh_lib.compiler_options(mesh))
  return {
      'topology': topology, 'devices': mesh.size,
      'mesh': {name: int(n) for name, n in mesh.shape.items()},
      'attention': recipe.settings.model.attention,
      'images_per_step': settings.train.batch_size,
      **_memory(step), **_work(recipe, mesh, epoch_steps),
      'collectives': _collectives(step.as_text())}


def _memory(step: jax.stages.Compiled) -> dict:
  """Of one device, as the compiler plans it."""
  m = step.memory_analysis()
  arguments, temporaries = m.argument_size_in_bytes, m.temp_size_in_bytes
  new = m.output_size_in_bytes - m.alias_size_in_bytes
  return {'arguments_gib': arguments / _GIB,
          'temporaries_gib': temporaries / _GIB,
          'peak_gib': (arguments + temporaries + new) / _GIB}


def _work(recipe: recipe_lib.Recipe, mesh: jax.sharding.Mesh,
          epoch_steps: int) -> dict:
  s = recipe.settings
  rows = program.abstract_batch(s, mesh)
  masked = int(np.prod(rows['mask_index'].shape)) if (
      'mask_index' in rows) else 0
  total = flops.step(s, masked)
  return {
      'parameters': {name: tree.num_elements(part)
                     for name, part in recipe.student.shapes.items()},
      'model_flops_per_step': total,
      'model_flops_per_image': total / s.train.batch_size,
      'total_steps': recipe_lib.total_steps(s, epoch_steps)}


def _collectives(text: str) -> dict:
  """By kind and type: how many a step, and bytes that a device sends."""
  out: dict[str, dict] = {}
  for one in hlo.collectives(text):
    entry = out.setdefault(
        f'{one.kind} {one.dtype}', {'count': 0, 'sent_bytes': 0.0})
    entry['count'] += one.count
    entry['sent_bytes'] += one.sent_bytes
  return dict(sorted(out.items(), key=lambda x: -x[1]['sent_bytes']))


def bounds(found: Mapping) -> dict | None:
  """Least times of a step, in seconds; None where there is no chip's table.

  Matrix products at the chip's peak and collectives at that of its links:
  what no program can beat. Memory traffic is not counted.
  """
  if found['topology'].startswith('cpu:'):
    return None
  chip = chips.of_topology(found['topology'])
  sent = sum(x['sent_bytes'] for x in found['collectives'].values())
  return {
      'hbm_gib': chip.hbm_gib / chip.cores,
      'matrix_s': found['model_flops_per_step'] / found['devices'] / (
          chip.bf16_flops / chip.cores),
      'link_s': sent / (chip.link_bytes / chip.cores)}


def table(found: Mapping) -> str:
  """The numbers for people."""
  count = ', '.join(f'{name} {n / 1e6:.1f} M'
                    for name, n in found['parameters'].items())
  mesh = ' × '.join(f'{name} {n}' for name, n in found['mesh'].items())
  lines = [
      f'{found["topology"]}: {found["devices"]} devices ({mesh}), '
      f'{found["images_per_step"]} images a step, attention '
      f'{found["attention"]}',
      f'parameters       {count}',
      f'memory a device  {found["peak_gib"]:.3f} GiB: arguments '
      f'{found["arguments_gib"]:.3f}, temporaries '
      f'{found["temporaries_gib"]:.3f}',
      f'model FLOPs      {found["model_flops_per_step"]:.3e} a step, '
      f'{found["model_flops_per_image"]:.3e} an image, without recomputation']
  for name, entry in found['collectives'].items():
    lines.append(f'{name:22} {entry["count"]:5d} a step, '
                 f'{entry["sent_bytes"] / 1e6:.3f} MB sent by a device')
  least = bounds(found)
  if least:
    fits = found['peak_gib'] / least['hbm_gib']
    lines += [
        f'of {least["hbm_gib"]:.0f} GiB        {100 * fits:.0f} %'
        + ('' if fits <= 1 else ': does not fit'),
        f'least time       {least["matrix_s"]:.3f} s of matrix products, '
        f'{least["link_s"]:.3f} s of links, at their peaks']
  return '\n'.join(lines)
