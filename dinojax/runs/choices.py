"""The rules of `dinojax train --data`: from facts to the lines of a config.

Every rule is a function of facts; what it gives is printed with its reason.
Rates and augmentation are those of configs/photos.py and configs/demo.py.
"""

from collections.abc import Sequence
import dataclasses
import math
import re
import textwrap

from dinojax.core import errors
from dinojax.core import log

# Longest training that is chosen, in seconds: 20 minutes on a CPU, a day on an
# accelerator. Whoever has more sets train.total_epochs.
_BUDGET_S = {'cpu': 20 * 60, 'gpu': 86400, 'tpu': 86400}
# Share of the speed of large matrix products that training reaches.
_EFFICIENCY = {'cpu': 0.35, 'gpu': 0.25, 'tpu': 0.35}
# DINOv2 and DINOv3 see ImageNet-1k, 1.28 M images, a hundred times; small sets
# need more epochs, and repeat themselves beyond some.
_USUAL_VIEWS, _LEAST_EPOCHS, _MOST_EPOCHS = 128_000_000, 100, 300
_LARGEST_BATCH = {'cpu': 64, 'gpu': 256, 'tpu': 256}  # of a device
_LEAST_BATCH = 8  # of a device
_FEW_IMAGES = 10_000
_MODEL = re.compile(r'vit(ti|s|b|l)(4|8|14|16)')


@dataclasses.dataclass(frozen=True)
class Facts:
  """Facts about images and machine that the choices follow from.

  Attributes:
    train: source of the training images.
    validation: source of labelled images, or None.
    whence: where the two come from, in words.
    num_images: number of images to train on.
    num_classes: number of classes, 0 without labels.
    short_px: short side of the image in the middle.
    platform: 'cpu', 'gpu' or 'tpu'.
    num_devices: number of devices of all processes.
    num_cores: number of CPU cores that this process may use.
    free_gib: free memory of a device in GiB.
    flops: FLOPs a second of matrix products on one device.
    model: a name such as 'vits14', or None.
  """

  train: str
  validation: str | None
  whence: str
  num_images: int
  num_classes: int
  short_px: int
  platform: str
  num_devices: int
  num_cores: int
  free_gib: float
  flops: float
  model: str | None = None


@dataclasses.dataclass(frozen=True)
class Choice:
  """Lines of a config, and why they are so."""

  lines: tuple[str, ...]
  reason: str


def sizes_of(model: str | None) -> tuple[str, int] | None:
  """('s', 14) of 'vits14'.

  Raises:
    UserError: unknown.
  """
  match = _MODEL.fullmatch(model or '')
  if model and not match:
    raise errors.UserError(
        f'--model={model} is not known: use vitti16, vits14, vits16, vitb14, '
        'vitb16, vitl14 or vitl16; other models are for a config of your own')
  return (match.group(1), int(match.group(2))) if match else None


def data(f: Facts) -> Choice:
  """Sources, and who reads them."""
  on_cpu = f.platform == 'cpu'
  workers = 0 if on_cpu else min(f.num_cores, 8)
  lines = [f'c.data.train = {f.train!r}']
  if f.validation:
    lines.append(f'c.data.validation = {f.validation!r}')
  return Choice((*lines, f'c.data.num_workers = {workers}',
                 f'c.data.num_threads = {max(min(f.num_cores, 8), 1)}'),
                f'{f.whence}; {f.num_images} images train, '
                + ('threads decode: the CPU is the device' if on_cpu else
                   f'{workers} processes decode'))


def model(f: Facts) -> Choice:
  """A size that the device can train in its time."""
  given = sizes_of(f.model)
  if given:
    (size, patch_px), reason = given, f'--model={f.model}'
  elif f.platform == 'cpu':
    size, patch_px = 'ti', 16
    reason = 'the smallest ViT: a CPU trains'
  else:
    size, patch_px = 's', 14
    reason = f'a {f.platform.upper()} trains a ViT-S in its time'
  if not given and f.short_px < 7 * patch_px:
    patch_px = 8 if f.short_px >= 56 else 4
    reason += f'; small patches for images of {f.short_px} px'
  return Choice((f"photos.set_model(c, '{size}', patch_px={patch_px})",),
                reason)


def crops(f: Facts, patch_px: int) -> Choice:
  """Global crops of half an image's side or so, never beyond it."""
  most = 96 if f.platform == 'cpu' else 224
  px = max(min(most, f.short_px) // patch_px, 3) * patch_px
  views = 4 if f.platform == 'cpu' else 8
  reason = (f'images have a short side of {f.short_px} px' if px < most
            - patch_px else 'what a CPU trains in its time'
            if f.platform == 'cpu' else 'as the references have')
  return Choice((f'photos.set_crops(c, {px}, patch_px={patch_px}, '
                 f'num_local={views})',), reason)


def colours(f: Facts) -> Choice | None:
  """Weaker jitter for few images, whose colours tell them apart."""
  if f.num_images >= _FEW_IMAGES:
    return None
  return Choice(('c.augment.jitter_probability = 0.4', 'c.augment.hue = 0.05',
                 'c.augment.grayscale_probability = 0.05'),
                f'fewer than {_FEW_IMAGES:,} images are told apart by colour '
                'too: less of it is changed, as in configs/demo.py')


def largest_batch(f: Facts) -> int:
  """The batch by the number of images alone: a quarter of them at most."""
  share = max(f.num_images // (4 * f.num_devices), 1)
  power = 2 ** (share.bit_length() - 1)
  return f.num_devices * min(
      max(power, _LEAST_BATCH), _LARGEST_BATCH[f.platform])


def batch(f: Facts, size: int, parts: int = 1) -> Choice:
  """Batch, groups and prototypes.

  Args:
    f: the facts.
    size: images of a batch.
    parts: micro-batches.
  """
  group = math.gcd(size // f.num_devices // parts, 32)
  prototypes = min(max(2 ** (8 * size).bit_length() // 2, 512), 65536)
  lines = (f'photos.set_batch(c, {size})',
           f'c.train.num_micro_batches = {parts}',
           f'c.train.group_images = {group}',
           f'c.koleo.group_images = {group}',
           f'c.dino.num_prototypes = {prototypes}',
           f'c.ibot.num_prototypes = {prototypes}')
  reason = (f'a quarter of {f.num_images} images at most, '
            f'{_LARGEST_BATCH[f.platform]} a device, and what fits '
            f'{f.free_gib:.1f} GiB')
  if parts > 1:
    reason += f' in {parts} parts (gradient accumulation)'
  return Choice(lines, f'{reason}; groups of {group}; 8 prototypes an image '
                'of a batch, 512 at least')


def epochs(f: Facts, batch_size: int, step_flops: float) -> Choice:
  """Length, and what is measured in it.

  Args:
    f: the facts.
    batch_size: images of a step.
    step_flops: multiplications and additions of a step.
  """
  wanted = min(max(_USUAL_VIEWS // f.num_images, _LEAST_EPOCHS), _MOST_EPOCHS)
  step_s = step_flops / (
      f.flops * f.num_devices * _EFFICIENCY[f.platform])
  epoch_steps = max(f.num_images // batch_size, 1)
  possible = int(_BUDGET_S[f.platform] / (step_s * epoch_steps))
  number = max(min(wanted, possible), 1)
  steps = number * epoch_steps
  reason = (f'about {log.duration(steps * step_s)} on this machine, if nothing '
            'else runs on it')
  if possible < wanted:
    reason += f'; {wanted} epochs would teach more'
  momentum = min(max(1 - 10 / steps, 0.95), 0.996)
  every = max(steps // 8, 1)
  duration = lambda section, name, value: (
      f"common.set_duration(c.{section}, '{name}', {value})")
  lines = [duration('train', 'total', f'epochs={number}'),
           duration('schedules.lr', 'warmup', f'steps={max(steps // 10, 1)}'),
           f'c.schedules.momentum.start = {momentum:.4g}',
           f'c.schedules.momentum.peak = {momentum:.4g}',
           duration('checkpoint', 'every', f'steps={every}'),
           f'c.log.every_steps = {min(max(steps // 50, 1), 50)}']
  if f.validation:
    lines += [duration('knn', 'every', f'steps={every}'),
              f'c.knn.k = {neighbours(f)}']
  return Choice(tuple(lines), f'{reason}; a warm-up of a tenth, an EMA over a '
                'tenth of the steps, eight checkpoints')


def neighbours(f: Facts) -> int:
  """Votes of k-NN: at most the images of a class."""
  return min(max(f.num_images // max(f.num_classes, 1), 1), 20)


def text(choices: Sequence[Choice], asked: str, workdir: str) -> str:
  """The config file."""
  return _FILE.format(asked=asked, workdir=workdir,
                      body=textwrap.indent(body(choices), '  '))


def body(choices: Sequence[Choice]) -> str:
  """The choices, each below its reason."""
  return '\n'.join('\n'.join((*_comment(choice.reason), *choice.lines))
                   for choice in choices)


def _comment(reason: str) -> list[str]:
  return [f'# {line}' for line in textwrap.wrap(
      reason[0].upper() + reason[1:] + '.', 74, break_long_words=False,
      break_on_hyphens=False)]


_FILE = '''"""What `dinojax train --data` chose; every value may be changed.

  dinojax train --config={workdir}/config.py --workdir=ANOTHER

The same again, bit for bit on the same devices. Values can also be given as
flags, after --config: --config.train.total_epochs=300
"""
# Chosen for {asked}

from dinojax.configs import common
from dinojax.configs import photos


def get_config(arg: str = ''):
  """`:smoke` ends in seconds."""
  c = common.base()
{body}
  return common.smoke(c) if arg == 'smoke' else c
'''
