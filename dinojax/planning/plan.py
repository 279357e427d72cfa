"""Plan of a config for a topology: its step is compiled, but not run."""

from collections.abc import Mapping
import re
from typing import Any

import jax

from dinojax.core import chips
from dinojax.core import errors
from dinojax.core import tree
from dinojax.engine import program
from dinojax.parallel import mesh as mesh_lib
from dinojax.parallel import topologies
from dinojax.planning import collectives
from dinojax.planning import estimate
from dinojax.planning import memory
from dinojax.planning import throughput
from dinojax.train import method as method_lib
from dinojax.train import pretraining
from dinojax.train import sections
from dinojax.train import settings as settings_lib
from dinojax.train import variants

_GIB = 2**30


def compiled(config: Any, topology: str) -> dict:
  """Compiles the step of a config and measures the program.

  Args:
    config: ConfigDict, see train.settings.
    topology: see topologies.devices.

  Returns:
    Numbers by name, JSON-able; memory is that of one device. `roofline` is
    None for CPUs; its `items` are what takes long.

  Raises:
    UserError: the config, the topology, or the two together.
    DoesNotFit: the program needs more memory than a device has.
  """
  settings = settings_lib.read(config)
  devices = topologies.devices(topology)
  mesh = mesh_lib.make(settings.mesh.data, settings.mesh.fsdp, devices=devices)
  settings_lib.check_devices(settings, mesh.size)
  epoch_steps = settings.train.epoch_steps or 1
  with mesh_lib.activate(mesh):
    whole = method_lib.build(settings, mesh, epoch_steps)
    trainable = pretraining.Pretraining(whole, mesh)
    lowered = program.planned(trainable, mesh).traced.lower()
    need = memory.estimate(trainable, mesh)
  method = variants.method_of(whole, variants.heaviest(whole))
  return {
      'attention': ', '.join(sorted({
          student.settings.model.attention for student in method.each.values()
          if student.settings.model.has_attention}) or ['none']),
      'remat': ', '.join(sorted({
          student.settings.model.remat
          for student in method.each.values()})),
      'images_per_step': settings.train.batch_size,
      'dearest_of': _steps(settings, method, epoch_steps),
      'estimated_gib': need.peak, **of_step(
          lowered, mesh, topology, _work(method, mesh, epoch_steps))[0]}


def of_step(lowered: jax.stages.Lowered, mesh: jax.sharding.Mesh,
            topology: str, work: Mapping[str, Any]
            ) -> tuple[dict, jax.stages.Compiled]:
  """Numbers of a step that is compiled for a topology, and the step.

  Args:
    lowered: the step.
    mesh: devices of the topology.
    topology: see topologies.devices.
    work: see estimate.of_program.

  Raises:
    DoesNotFit: the program needs more memory than a device has.
  """
  step = _compile(lowered, mesh, topology)
  text = step.as_text()
  sent = collectives.of_program(text)
  return {
      'topology': topology, 'devices': mesh.size,
      'mesh': {name: int(n) for name, n in mesh.shape.items()},
      **_memory(step), 'hbm_gib': hbm_gib(topology), **work,
      'collectives': _collectives(sent),
      **estimate.of_program(text, topology, mesh.size, sent, work)}, step


def _steps(settings: settings_lib.Settings, method: method_lib.Method,
           epoch_steps: int) -> str | None:
  """Describes the steps that were compiled; None: all steps are alike."""
  total = method_lib.total_steps(settings, epoch_steps)
  if not settings.crops.sizes and not 0 < method.gram_start < total:
    return None
  crops = method.settings.crops
  text = f'crops of {crops.global_px} and {crops.local_px} pixels'
  return text + (f', Gram anchoring at {method.settings.gram_px}'
                 if method.settings.gram_px else '')


def hbm_gib(topology: str) -> float | None:
  """Memory of one device, None for CPUs."""
  if topology.startswith('cpu:'):
    return None
  chip = chips.of_topology(topology)
  return chip.hbm_gib / chip.cores


def _compile(lowered: jax.stages.Lowered, mesh: jax.sharding.Mesh,
             topology: str) -> jax.stages.Compiled:
  try:
    return lowered.compile(mesh_lib.compiler_options(mesh))
  except jax.errors.JaxRuntimeError as error:
    # '… (27.39G) exceeds available HBM (15.75G)', 'Used 20G of 15.75G hbm'
    sizes = re.findall(r'\b([\d.]+)([KMGT])\b', str(error))
    if 'RESOURCE_EXHAUSTED' not in str(error) or len(sizes) < 2:
      raise
    needed, limit = (float(size) * 1024.0 ** ('KMGT'.index(unit) - 2)
                     for size, unit in sizes[:2])
    raise DoesNotFit(topology, needed, limit) from error


class DoesNotFit(errors.UserError):
  """The program needs more memory than a device has."""

  def __init__(self, topology: str, needed_gib: float, limit_gib: float):
    self.needed_gib = needed_gib
    super().__init__(
        f'the step does not fit {topology}: it needs at least '
        f'{needed_gib:.2f} GiB of the {limit_gib:.2f} GiB that a device has '
        'for programs. Set mesh.fsdp to split the state over more devices, '
        'train.batch_size or train.group_images to fewer images a device, '
        'train.num_micro_batches to more, or model.remat=blocks')


def _memory(step: jax.stages.Compiled) -> dict:
  """GiB of one device, as the compiler plans them."""
  m = step.memory_analysis()
  arguments, temporaries = m.argument_size_in_bytes, m.temp_size_in_bytes
  new = m.output_size_in_bytes - m.alias_size_in_bytes
  return {'arguments_gib': arguments / _GIB,
          'temporaries_gib': temporaries / _GIB,
          'peak_gib': (arguments + temporaries + new) / _GIB}


def _work(method: method_lib.Method, mesh: jax.sharding.Mesh,
          epoch_steps: int) -> dict:
  s, total = method.settings, throughput.step_flops(method, mesh)
  frozen = {'teacher': method.teacher} if method.has_frozen_teacher else {}
  students = {'' if name == sections.ALONE else name: student.student
              for name, student in method.each.items()}
  return {
      'parameters': {
          f'{owner} {name}'.strip(): tree.num_elements(part)
          for owner, net in (frozen | students).items()
          for name, part in net.shapes.items()},
      'model_flops_per_step': total,
      'model_flops_per_image': total / s.train.batch_size,
      # Epochs of the data are unknown here.
      'total_steps': method_lib.total_steps(s, epoch_steps) if (
          s.train.epoch_steps or s.train.total.unit != 'epochs') else None}


def _collectives(sent: list[collectives.Collective]) -> dict:
  """Sums counts and bytes sent by a device in a step, by kind and type."""
  out: dict[str, dict] = {}
  for item in sent:
    entry = out.setdefault(
        f'{item.kind} {item.dtype}', {'count': 0, 'sent_bytes': 0.0})
    entry['count'] += item.count
    entry['sent_bytes'] += item.sent_bytes
  return dict(sorted(out.items(), key=lambda x: -x[1]['sent_bytes']))
