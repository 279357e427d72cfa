"""Several students at once from a frozen ViT-7B/16: DINOv3's small models.

  dinojax train --config=vit7b_distill \
    --config.distillation.source=gs://BUCKET/vit7b_highres \
    --workdir=gs://BUCKET/students \
    --config.data.train=arrayrecord:gs://BUCKET/images/*.arrayrecord
  dinojax train --config=vit7b_distill:vits16 …

Five students (`DEFAULT`), or those that are named: `vits16`, `vits16,vitb16`,
`vith16plus`, `convnext_base`. Each learns from every image; from half of them:
`--config.students.vits16.train.share=0.5` (its rate goes with it). The result
is each one's EMA.
With a ConvNeXt crops are 512 and 224 pixels, 256 and 112 for all ViTs.

`late`: DINOv3's file for ViTs, 25,000 steps of students that exist already:
`:late` and `--config.students.vits16.init.source=…` for each. Without it: from
random weights, by the ConvNeXt files, the only ones published for that.

For `:smoke` train the teacher first:

  dinojax train --config=vit7b:smoke --workdir=runs/teacher
  dinojax train --config=vit7b_distill:smoke \
    --workdir=runs/students

Source: vitl16_lvd1689m_distilled and convnext_*_distill of DINOv3.
Hardware: 256 TPU v5p (docs/performance.md). 625,000 steps.
Expected: the released ones, linear at 512 pixels, measured by others: S 81.4,
S+ 82.9, B 85.0, L 87.4, H+ 87.7.
First loss: 12.48 = ln 262144 for both DINO parts; iBOT's is half of 11.50.
Differs: batch 4096 is what a comment in the ConvNeXt files says; the rates of
ViTs from random weights are those of ConvNeXts of like size, and weight decay
and layer decay of the ViT file, all ours. Masks choose patches and hide none,
as there; they are one draw for all students, where each drew its own. KoLeo's
groups are there the images of a GPU: 128 of 4096 on 32 GPUs a student, and in
the ViT file 40, 40, 24 and 16, which is followed. A share of the batch needs
them to divide it.
"""

import math

from dinojax.configs import common
from dinojax.models import zoo

DEFAULT = ('vits16', 'vits16plus', 'vitb16', 'vitl16', 'convnext_tiny')
_LATE = ('vits16', 'vits16plus', 'vitb16', 'vitl16')
# Before the rule of the batch. Of the ConvNeXt files; ViTs: of like size.
_RATES = {
    'vits16': 2e-4, 'vits16plus': 2e-4, 'vitb16': 1e-4, 'vitl16': 1e-4,
    'vith16plus': 1e-4, 'convnext_tiny': 2e-4, 'convnext_small': 2e-4,
    'convnext_base': 1e-4, 'convnext_large': 1e-4}
# Of the ViT file: 1920 images on 48, 48, 80 and 120 GPUs.
_LATE_KOLEO = {'vits16': 40, 'vits16plus': 40, 'vitb16': 24, 'vitl16': 16}


def get_config(arg: str = ''):
  """Students by name, `DEFAULT` without; `late`; `smoke` ends in seconds."""
  words = common.words(arg, (*_RATES, 'late', 'smoke'))
  late = 'late' in words
  names = [word for word in words if word in _RATES]
  c = teach(late)
  set_students(c, names or (_LATE if late else DEFAULT), late)
  return common.smoke_distillation(c) if 'smoke' in words else c


def teach(late: bool):
  """All but the students: teacher, data, batch, schedules."""
  c = common.base()
  c.data.train = 'tfds:imagenet2012/train'
  c.data.validation = 'tfds:imagenet2012/validation'
  c.data.num_workers = 8
  c.distillation.model = 'dinov3_vit7b16'
  for head, teacher, prototypes, bottleneck, hidden in (
      (c.dino, c.distillation.dino, 262144, 512, 8192),
      (c.ibot, c.distillation.ibot, 98304, 384, 4096)):
    head.num_prototypes = prototypes
    for sizes in (head, teacher):
      sizes.bottleneck_dim = bottleneck
      sizes.hidden_dim = hidden
  c.train.epoch_steps = 1250
  c.schedules.style = 'v3'
  c.schedules.lr_rule = 'sqrt_1024_x4'
  (_late if late else _long)(c)
  c.mesh.fsdp = 64
  c.knn.every_epochs = 5.0
  c.checkpoint.every_steps = 1250.0
  c.checkpoint.keep = 3
  return c


def _long(c):
  """From random weights: the ConvNeXt files."""
  c.train.batch_size = 4096
  c.train.group_images = 4  # a share is of groups: quarters, on 256 chips
  c.koleo.group_images = 128
  c.masks.spread_images = 128
  c.train.total_epochs = 500.0
  common.set_duration(c.schedules, 'freeze_last_layer', epochs=1)
  c.schedules.lr = common.curve(1e-6, 2e-4, 1e-6, warmup_epochs=80.0)
  c.schedules.weight_decay = common.curve(
      0.04, 0.2, 0.2, warmup_epochs=500.0)  # linear
  c.schedules.momentum = common.curve(
      0.994, 1.0, 1.0, warmup_epochs=500.0)  # linear
  c.schedules.teacher_temperature = common.curve(
      0.04, 0.07, 0.07, warmup_epochs=120.0)


def _late(c):
  """Students that were distilled before: the ViT file."""
  c.train.batch_size = 1920
  c.train.group_images = 15  # on 128 chips; there 16 to 40
  c.koleo.group_images = 16
  c.masks.spread_images = 24  # two groups
  c.crops.flip_probability = 0.0  # horizontal_flips: false
  c.train.total_epochs = 20.0
  # The reference's rule counts 1776 of the 1920 images: 6 on each of 296 GPUs.
  c.schedules.lr = common.curve(
      0.0, 0.0, 5e-5 * math.sqrt(1776 / 1920), cosine_epochs=10.0)  # 2.634e-4
  c.schedules.weight_decay = common.curve(0.04, 0.04, 0.04)
  c.schedules.momentum = common.curve(0.994, 0.994, 1.0)
  c.schedules.teacher_temperature = common.curve(0.07, 0.07, 0.07)


def set_students(c, names, late: bool = False):
  """One is the model of the config, several are c.students."""
  made = {name: student(name, late) for name in names}
  # Crops are made for the largest patches.
  coarse = [name for name in names if name.startswith('convnext')]
  c.model = dict(made[(coarse or names)[0]]['model'])
  c.crops.global_px, c.crops.local_px = (512, 224) if coarse else (256, 112)
  if len(names) > 1:
    c.students = made
    return
  (alone,) = made.values()
  for section in ('dino', 'ibot', 'koleo', 'optimizer', 'schedules', 'init'):
    _update(c[section], alone.get(section, {}))


def _update(section, values):
  for key, value in values.items():
    if isinstance(value, dict):
      _update(section[key], value)
    else:
      section[key] = value


def student(name: str, late: bool = False) -> dict:
  """Settings that one student does not share with the others."""
  if name.startswith('convnext'):
    settings = common.student(zoo.convnext_config(f'dinov3_{name}'))
    for head in ('dino', 'ibot'):
      settings[head] = {'hidden_dim': 2048, 'bottleneck_dim': 256}
    if name == 'convnext_base' and not late:
      settings['schedules']['weight_decay'] = {'start': 0.02}
  else:
    # The reference's builder makes RoPE in bfloat16, whatever its file says.
    settings = common.student(zoo.vit_config(
        f'dinov3_{name}', rope_dtype='bfloat16'))
    settings['optimizer']['layerwise_decay'] = 0.99
  if late:
    settings['init']['source'] = f'runs/{name}'
    settings['koleo'] = {'group_images': _LATE_KOLEO.get(name, 16)}
  else:
    settings['schedules']['lr'] = {'peak': _RATES[name]}
  return settings
