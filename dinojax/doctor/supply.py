"""Checks by numbers that machine, disk and data keep up with a run."""

import math

from dinojax.data import shared_memory
from dinojax.doctor import findings
from dinojax.planning import memory as memory_lib
from dinojax.train import settings as settings_lib

Settings = settings_lib.Settings
Findings = list[findings.Finding]

# Decoding times vary: with less than this, some steps wait.
_ENOUGH = 1.2
# The rest goes to fragments and to what other programs hold.
_MOST_MEMORY = 0.9
# Large products of a GPU or TPU that nothing holds back reach 0.7 and more.
_LEAST_SPEED = 0.5
# Of a CPU's time, for decoding.
_MOST_SHARE = 0.33
# Laptops are closed at night; the longest published runs took weeks.
_LONGEST_S = {'cpu': 12 * 3600, 'gpu': 21 * 86400, 'tpu': 21 * 86400}
_SMALLER = 'store smaller images: decoding costs as many pixels as they have'


def epochs(s: Settings, total_steps: int, num_images: int) -> Findings:
  """Are there images for a batch, and how often is each seen?"""
  batch = s.train.batch_size
  if num_images < batch:
    return [findings.warn(
        'epochs', f'a batch of {batch} repeats the {num_images} images, and '
        'KoLeo pushes copies apart', f'set train.batch_size to {num_images} '
        'or less, or take more images')]
  seen = total_steps * batch / num_images
  text = f'{seen:.2g}' if seen < 10 else f'{seen:,.0f}'
  return [findings.ok(
      'epochs', f'each of {num_images} images is seen {text} times')]


def workers(settings: Settings, cores: int,
            shared_gib: float | None, rows: int) -> Findings:
  """Are there cores, and shared memory, for the workers?

  Args:
    settings: settings of the run.
    cores: number of cores that may be used.
    shared_gib: GiB free in /dev/shm; None: there is no such folder.
    rows: images of a batch that this process makes.
  """
  count = settings.data.num_workers
  if not count:
    return [findings.ok('workers', f'none: {settings.data.num_threads} '
                        'threads of the training process')]
  worker_findings = [
      findings.ok('workers', f'{count} processes on {cores} cores')]
  if count > cores:
    worker_findings = [findings.warn(
        'workers', f'data.num_workers={count} for {cores} cores',
        f'set data.num_workers to {max(cores - 1, 1)} or less')]
  # Rows stay in shared memory until their batch is put together.
  need = shared_memory.need_gib(
      settings.made_crops, settings.model.num_channels, rows, count)
  if shared_gib is not None and need > shared_gib:
    worker_findings.append(findings.warn(
        'shared memory', f'workers hand over {need:.2f} GiB at a time, and '
        f'/dev/shm has {shared_gib:.2f} free',
        f'docker run --shm-size={math.ceil(2 * need)}g, or '
        'data.num_workers=0'))
  return worker_findings


def estimated(need: memory_lib.Estimate, free: float,
              fix: str) -> findings.Finding:
  """Will a step fit, before it is compiled?

  Args:
    need: estimated memory of a device.
    free: free memory of a device, in GiB.
    fix: values that would fit.
  """
  text = memory_lib.sentence(need, free)
  if need.peak <= memory_lib.DOUBTFUL * free:
    return findings.ok('memory', text)
  if need.peak <= memory_lib.REFUSED * free:
    return findings.warn('memory', f'{text}: it may not fit', fix)
  return findings.error('memory', f'{text}: it does not fit, and training '
                        'stops before it compiles', fix)


def time(seconds: float, text: str, platform: str) -> findings.Finding:
  """Will training end while somebody waits for it?"""
  longest = _LONGEST_S.get(platform, _LONGEST_S['tpu'])
  if seconds <= longest:
    return findings.ok('training', text)
  return findings.warn(
      'training', text, 'a smaller config, such as configs/photos.py, a '
      'shorter train.total, or a faster machine: `dinojax compile` says what '
      'it would take there')


def memory(need: float, have: float, what: str) -> findings.Finding:
  """Does it fit into a device?"""
  text = f'{what} {need:.3g} GiB of a device, which has {have:.1f}'
  if need <= _MOST_MEMORY * have:
    return findings.ok('memory', text)
  fix = ('more devices and mesh.fsdp above 1, or, where activations are too '
         'much, train.num_micro_batches or model.remat=blocks; `dinojax '
         'compile` says what other machines need')
  if need <= have:
    return findings.warn('memory', f'{text}: nearly full', fix)
  return findings.error('memory', f'{text}: it does not fit', fix)


def products(speed: float, dtype: str, peak: float | None
             ) -> findings.Finding:
  """Is a device as fast as its kind?

  Args:
    speed: speed of matrix products in `dtype`, in FLOPs a second.
    dtype: name of the dtype of the products.
    peak: published speed of such a device, or None.
  """
  text = f'{speed / 1e12:.3g} TFLOP/s in {dtype} on one device'
  if peak is None:
    return findings.ok('matrix products', text)
  text += f', {speed / peak:.0%} of its published peak'
  if speed >= _LEAST_SPEED * peak:
    return findings.ok('matrix products', text)
  return findings.warn(
      'matrix products', text, 'see whether another program uses the device, '
      'or heat or a power limit holds it back (nvidia-smi)')


def space(state_gib: float, free_gib: float | None, keep: int,
          have: int = 0) -> Findings:
  """Do the checkpoints of a run fit on its disk, beside those it has?"""
  if free_gib is None:
    return []
  # A new one is whole before an old one goes.
  need = max(keep + 1 - have, 1) * state_gib
  text = (f'{keep} checkpoints of {state_gib:.3g} GiB and one in the making, '
          f'{have} there, {free_gib:.1f} free')
  if need > free_gib:
    return [findings.error('checkpoints', text, 'free space, or lower '
                           'checkpoint.keep')]
  return [findings.ok('checkpoints', text)]


def balance(brought: float, taken: float, settings: Settings, *,
            cores: int, platform: str) -> findings.Finding:
  """Tells whether images or the step limit training, and what to change.

  Args:
    brought: images a second of the input pipeline.
    taken: images a second of the step, its input ready.
    settings: settings of the run.
    cores: number of cores that may be used.
    platform: platform of the devices; on a CPU, step and pipeline share cores.
  """
  if platform == 'cpu':
    return _shared(brought, taken)
  ratio = brought / taken
  if ratio >= _ENOUGH:
    return findings.ok('balance', f'the step limits training: images come '
                       f'{ratio:.1f} times as fast')
  text = (f'images limit training: devices idle {1 - ratio:.0%} of the time'
          if ratio < 1 else 'images come only just fast enough')
  return findings.warn('balance', text, _more(ratio, settings, cores))


def _shared(brought: float, taken: float) -> findings.Finding:
  """On a CPU: both use all cores, one after the other as it were."""
  both = 1 / (1 / brought + 1 / taken)
  share = both / brought
  text = (f'images take {share:.0%} of the cores, the step the rest: about '
          f'{both:.3g} images/s together')
  if share <= _MOST_SHARE:
    return findings.ok('balance', text)
  return findings.warn('balance', text, _SMALLER)


def _more(ratio: float, settings: Settings, cores: int) -> str:
  """How to get images faster."""
  workers = settings.data.num_workers
  want = math.ceil(_ENOUGH / ratio * max(workers, 1))
  steps = []
  if cores > max(workers, 1):
    steps.append(f'set data.num_workers to {min(want, cores)}')
  if want > cores:
    steps.append(f'{want} cores instead of {cores}')
  if any(spec.startswith('folder:') for spec, _ in settings.data.mixture):
    steps.append('`dinojax convert records` where the storage is slow')
  return '; '.join([*steps, _SMALLER])
