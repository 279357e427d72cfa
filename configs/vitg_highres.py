"""518-pixel adaptation of DINOv2's models: its second stage.

  dinojax train --config=vitg_highres \
    --config.init.source=gs://BUCKET/vitg --workdir=gs://BUCKET/vitg_518 \
    --config.data.train=arrayrecord:gs://BUCKET/images/*.arrayrecord
  dinojax train --config=vitg_highres:l …

`s`, `b`, `l`: the released sizes; `l_swiglu`: that of configs/vitl14.py.
Source: the DINOv2 paper: 10,000 steps at 518 pixels at the end, all schedules
compressed to them, a lower learning rate. No file was published.
Hardware: 64 H100 (not run). Compiled for 256 TPU v5e g needs 17.1 of 16 GiB a
chip; 11.1 GiB, 2.1 to 3.6 s a step and 1,530 to 2,530 chip-hours in all with
train.num_micro_batches=2, train.group_images=6 and koleo.group_images=6.
First loss: what the run before ended with, a little more for a while.
Differs, ours: the paper does not say how much lower the rate is; this takes
the step of DINOv3's files, from 4e-4 to 7.07e-5. Drop path 0.1 for S and B.
The optimizer's moments start anew, which the compressed warm-up covers.
Masks and precision as in configs/vitg.py, which see.
"""

from dinojax.configs import common
from dinojax.configs import vitg
from dinojax.models import zoo

_MODELS = {
    'g': dict(name='dinov2_vitg14'), 'l': dict(name='dinov2_vitl14'),
    'b': dict(name='dinov2_vitb14'), 's': dict(name='dinov2_vits14'),
    'l_swiglu': dict(name='dinov2_vitl14', ffn='swiglu',
                     ffn_hidden=zoo.swiglu_hidden(1024, 4)),
}


def get_config(arg: str = ''):
  """A size, `g` without; `:smoke` or `:s,smoke` ends in seconds."""
  words = common.words(
      arg, (*_MODELS, 'smoke'), one_of=(tuple(_MODELS),))
  size = next((word for word in words if word in _MODELS), 'g')
  c = vitg.get_config()
  common.set_model(c, zoo.vit_config(**_MODELS[size], image_px=518))
  c.model.drop_path_rate = 0.1 if size in 'sb' else 0.4
  c.model.layerscale = 1e-5
  c.model.remat = 'blocks'
  c.init.source = f'runs/vit{size}'
  c.init.part = 'both'
  c.crops.global_px = 518

  c.train.total_epochs = 8.0  # of 1250 steps: 10,000
  # Of the 500 epochs of the first stage: 80 warm-up, 30 temperature, 1 frozen.
  c.schedules.lr = common.curve(
      0.0, 2e-4 * 7.07e-5 / 4e-4, 1e-6, warmup_steps=1600.0)  # actual 6.12e-5
  c.schedules.teacher_temperature = common.curve(
      0.04, 0.07, 0.07, warmup_steps=600.0)
  common.set_duration(c.schedules, 'freeze_last_layer', steps=20)
  common.set_duration(c.knn, 'every', steps=1000)
  common.set_duration(c.checkpoint, 'every', steps=250)
  if 'smoke' in words:
    common.smoke(c)
    c.init.source = None
  return c
