"""Seconds, images a second, MFU and chip-hours of a step, from its program.

An estimate, not a measurement: every assumption is in `assumptions`, and is
printed with the numbers.
"""

from collections.abc import Mapping, Sequence

from dinojax.core import chips
from dinojax.planning import collectives
from dinojax.planning import links
from dinojax.planning import matrix
from dinojax.planning import roofline

_NUM_ITEMS = 20


def of_program(text: str, topology: str, devices: int,
               sent: Sequence[collectives.Collective], work: Mapping) -> dict:
  """Estimates FLOPs, time, MFU and chip-hours of a compiled step.

  Args:
    text: `compiled.as_text()` of the step.
    topology: such as 'v5e:16x16'; for 'cpu:8' only FLOPs are counted.
    devices: number of devices of the topology.
    sent: collectives of the program.
    work: model_flops_per_step and total_steps (None: unknown).

  Returns:
    executed_flops_per_step, and roofline: numbers by name, None for CPUs. For
    TPUs also roofline_mfu_pct: the MFU without overlap.
  """
  if topology.startswith('cpu:'):
    return {'executed_flops_per_step': devices * roofline.executed(
        roofline.work(text)), 'roofline': None}
  chip = chips.of_topology(topology)
  items = roofline.work(text, chip.matrix_side)
  sums = roofline.total(items, chip)
  link_s = links.seconds(chip, topology, sent)
  host_s = sums['host_bytes'] * chip.cores / chip.host_bytes
  step_s = {'no_overlap': sums['busy_s'] + link_s + host_s,
            'full_overlap': max(sums['busy_s'], link_s, host_s)}
  if 'expected_s' in sums:
    step_s['compiler'] = sums['expected_s'] + link_s + host_s
  peak = chip.bf16_flops / chip.cores * devices
  of_all = lambda value: {name: value(s) for name, s in step_s.items()}
  mfu = of_all(lambda s: 100 * work['model_flops_per_step'] / (s * peak))
  return {
      'executed_flops_per_step': devices * sums['flops'],
      'roofline_mfu_pct': mfu['no_overlap'],
      'roofline': {
          **sums, 'link_s': link_s, 'host_s': host_s, 'step_s': step_s,
          'mfu_pct': mfu,
          'chip_hours': work['total_steps'] and of_all(
              lambda s: work['total_steps'] * s * devices
              / chip.cores / 3600),
          'assumptions': assumptions(chip), 'items': _items(items, chip)}}


def assumptions(chip: chips.Chip) -> list[str]:
  """Lists the assumptions of the estimate in words."""
  return [
      f'{chip.name}: {chip.bf16_flops / 1e12:.0f} TFLOP/s in bfloat16, '
      f'{chip.hbm_bytes / 1e9:.0f} GB/s of HBM, links of '
      f'{chip.link_bytes / 1e9:.0f} GB/s one way, {chip.host_bytes / 1e9:.0f} '
      'GB/s to the host (published peaks)',
      'an instruction takes the longer of its matrix products, tiles filled '
      f'up to {matrix.ROWS} rows and {chip.matrix_side} columns and summed '
      'elements, and its traffic to HBM, tiles filled up; instructions follow '
      'each other',
      'float32 products count as one bfloat16 pass; the vector unit and VMEM '
      'keep up, but for the line "as the compiler expects": there an '
      'instruction takes at least the cycles that the compiler expects',
      'loops count with their trips, kernels with the cost that they state',
      'a collective is a ring over one axis of the torus: 2 links of a chip '
      f'if the axis is a multiple of {chip.wrap}, else 1, never the links of '
      f'other axes, and at least {links.HOP_S * 1e6:.0f} µs a hop; its traffic '
      'to HBM is not counted',
      'the input pipeline, evaluation and checkpoints cost nothing']


def _items(items: list[roofline.Work], chip: chips.Chip) -> list[dict]:
  """Sums a step on one device by `place`, and returns the slowest places."""
  groups: dict[str, dict[str, float]] = {}
  for item in items:
    group = groups.setdefault(place(item), {
        'seconds': 0.0, 'expected_s': 0.0, 'flops': 0.0, 'padded_flops': 0.0,
        'hbm_bytes': 0.0})
    group['seconds'] += item.seconds(chip)
    if chip.clock_hz:
      group['expected_s'] += item.expected_seconds(chip)
    for key in ('flops', 'padded_flops', 'hbm_bytes'):
      group[key] += item.count * getattr(item, key)
  ranked = sorted(groups.items(), key=lambda x: -max(
      x[1]['seconds'], x[1]['expected_s']))
  return [{'name': name, **group} for name, group in ranked[:_NUM_ITEMS]]


def place(item: roofline.Work) -> str:
  """Where an instruction comes from: pass, function, operation.

  'jit(step)/transpose(jvp())/while/body/checkpoint/dot_general' of a function
  is 'backward, blocks: layers.SwiGlu.__call__ dot_general'.
  """
  if not item.op_name:
    return f'compiler: {item.kind}'
  parts = item.op_name.split('/')
  part = 'no gradient'
  if any(x.startswith('rematted_computation') for x in parts):
    part = 'recomputed'
  elif any(x.startswith('transpose(') for x in parts):
    part = 'backward'
  elif any(x.startswith('jvp(') for x in parts):
    part = 'forward'
  where = ', blocks' if 'while' in parts else ''
  last = parts[-2] if parts[-1] == 'pallas_call' else parts[-1]
  return f'{part}{where}: {item.origin} {last}'
