"""The numbers of `plan.compiled`, for people."""

from collections.abc import Mapping

_BOUNDS = {'no_overlap': 'without overlap', 'full_overlap': 'full overlap',
           'compiler': 'as the compiler expects'}


def table(numbers: Mapping, explain: bool = False) -> str:
  """Formats the numbers of `plan.compiled` as lines of text.

  Args:
    numbers: numbers that `plan.compiled` returned.
    explain: adds where the time goes.
  """
  lines = [*_program(numbers), *_memory(numbers), *_flops(numbers)]
  for name, entry in numbers['collectives'].items():
    lines.append(f'{name:22} {entry["count"]:5d} a step, '
                 f'{entry["sent_bytes"] / 1e6:.3f} MB sent by a device')
  if numbers['roofline'] is None:
    return '\n'.join([*lines, 'no roofline: a CPU has no published peaks'])
  return '\n'.join([*lines, *_roofline(numbers),
                    *(_items(numbers['roofline']) if explain else [])])


def _program(numbers: Mapping) -> list[str]:
  mesh = ' × '.join(f'{name} {n}' for name, n in numbers['mesh'].items())
  count = ', '.join(f'{name} {n / 1e6:.1f} M'
                    for name, n in numbers['parameters'].items())
  lines = [f'{numbers["topology"]}: {numbers["devices"]} devices ({mesh}), '
           f'{numbers["images_per_step"]} images a step, attention '
           f'{numbers["attention"]}']
  if numbers['dearest_of']:
    lines.append(f'steps differ     this is of the dearest, with '
                 f'{numbers["dearest_of"]}; the whole run takes less')
  return [*lines, f'parameters       {count}']


def _memory(numbers: Mapping) -> list[str]:
  line = (f'memory a device  {numbers["peak_gib"]:.3f} GiB: arguments '
          f'{numbers["arguments_gib"]:.3f}, temporaries '
          f'{numbers["temporaries_gib"]:.3f}')
  before = (f'estimated before {numbers["estimated_gib"]:.3f} GiB, as `dinojax '
            'train` and `doctor` do')
  if numbers['hbm_gib'] is None:
    return [line, before]
  share = numbers['peak_gib'] / numbers['hbm_gib']
  return [f'{line}; {100 * share:.0f} % of the {numbers["hbm_gib"]:.0f} GiB '
          'of HBM' + ('' if share <= 1 else ': does not fit'), before]


def _flops(numbers: Mapping) -> list[str]:
  needed, done = (numbers['model_flops_per_step'],
                  numbers['executed_flops_per_step'])
  return [
      f'model FLOPs      {needed:.3e} a step, '
      f'{numbers["model_flops_per_image"]:.3e} an image: what the method needs',
      f'executed FLOPs   {done:.3e} a step: {done / needed:.3f} × needed, '
      f'with model.remat={numbers["remat"]}']


def _roofline(numbers: Mapping) -> list[str]:
  r, images = numbers['roofline'], numbers['images_per_step']
  lines = [
      f'matrix products  {r["matrix_s"]:.3f} s, tiles filled up: '
      f'{r["padded_flops"] / max(r["flops"], 1):.3f} × executed FLOPs',
      f'HBM              {r["hbm_s"]:.3f} s, {r["hbm_bytes"] / 1e9:.1f} GB a '
      'device',
      f'busy             {r["busy_s"]:.3f} s: the longer of the two, '
      'instruction by instruction',
      f'links            {r["link_s"]:.3f} s']
  if r['host_bytes']:
    lines.append(f'host memory      {r["host_s"]:.3f} s, '
                 f'{r["host_bytes"] / 1e9:.1f} GB a device')
  for name, seconds in r['step_s'].items():
    lines.append(
        f'step             {seconds:.3f} s, {_BOUNDS[name]}: '
        f'{images / seconds:.0f} images/s, MFU {r["mfu_pct"][name]:.1f} %')
  if r['chip_hours']:
    least, *_, most = sorted(r['chip_hours'].values())
    lines.append(
        f'whole run        {numbers["total_steps"]} steps: {least:.0f} to '
        f'{most:.0f} chip-hours')
  else:
    lines.append('whole run        its epochs are those of the data: set '
                 '--config.train.epoch_steps for chip-hours')
  return [*lines, 'an estimate, which takes for granted:',
          *(f'- {assumption}' for assumption in r['assumptions'])]


def _items(roofline: Mapping) -> list[str]:
  lines = ['where the time goes (ms: roofline, as the compiler expects):']
  for place in roofline['items']:
    lines.append(
        f'{1e3 * place["seconds"]:9.2f} {1e3 * place["expected_s"]:9.2f}  '
        f'{place["padded_flops"] / 1e12:8.3f} TFLOP '
        f'{place["hbm_bytes"] / 1e9:8.2f} GB  {place["name"]}')
  return lines
