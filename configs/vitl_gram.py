"""ViT-S, B or L/16 with Gram anchoring, all in one run.

  dinojax train --config=vitl_gram --workdir=runs/l_gram \
    --config.data.train=arrayrecord:gs://BUCKET/imagenet/train*.arrayrecord
  dinojax train --config=vitl_gram:s …

`s`, `b`, `l` (default). 87,500 steps as configs/vitl.py:v3, then Gram anchoring
to the EMA of that step on undistorted crops of 448 pixels; nothing of it costs
before. The Gram teacher is renewed three times. The shape is that of DINOv3's
released models, with registers and the rescaling of RoPE.
Hardware: as configs/vitl.py; S and B need less.
First loss: 11.09 = ln 65536 for both DINO parts, half of it for iBOT.
Differs: nobody has published a Gram stage for these sizes, so its numbers are
ours, in the proportions of the 7B's: from 70 % of the run on, where the rate
is still a quarter of its peak (the 7B's never falls), a weight of 2 and local
crops at half weight within an epoch, crops twice as wide, three refreshes in
the first fifth of the stage. Drop path 0.1 for S and B. Not run at full size.
Global crops are resized once, from the image, where DINOv3 with a Gram teacher
resizes them twice: sharper by about 5 %.
"""

from dinojax.configs import common
from dinojax.configs import vitl
from dinojax.models import zoo

_START_EPOCHS = 70.0
_MODELS = {'s': 'dinov3_vits16', 'b': 'dinov3_vitb16', 'l': 'dinov3_vitl16'}


def get_config(arg: str = ''):
  """A size, `l` without; `:smoke` or `:s,smoke` ends in seconds."""
  words = common.words(
      arg, (*_MODELS, 'smoke'), one_of=(tuple(_MODELS),))
  size = next((word for word in words if word in _MODELS), 'l')
  c = vitl.get_config('v3')
  common.set_model(c, zoo.vit_config(_MODELS[size], rope_dtype='bfloat16'))
  c.model.drop_path_rate = 0.3 if size == 'l' else 0.1
  c.crops.gram_px = 448

  c.gram.loss_weight = 1.0  # times schedules.gram_weight
  common.set_duration(c.gram, 'start', epochs=_START_EPOCHS)
  common.set_duration(c.gram, 'refresh_start', epochs=_START_EPOCHS + 2)
  common.set_duration(c.gram, 'refresh_every', epochs=2)
  c.gram.max_refreshes = 3

  # Only these curves can wait; they scale the last rate by the batch as well.
  c.schedules.style = 'v3'
  c.schedules.lr = common.curve(0.0, 0.001, 1e-6, warmup_epochs=10.0)
  anchor(c, warmup_epochs=_START_EPOCHS, cosine_epochs=1.0)
  return smoke(c) if 'smoke' in words else c


def anchor(c, **wait):
  """Weights that change when the Gram teacher comes."""
  c.schedules.gram_weight = common.curve(0.0, 0.0, 2.0, **wait)
  c.schedules.dino_local_weight = common.curve(1.0, 1.0, 0.5, **wait)


def smoke(c):
  """The Gram teacher comes after three of six steps, and is renewed once."""
  common.smoke(c)
  c.crops.gram_px = 2 * c.crops.global_px
  common.set_duration(c.gram, 'start', steps=3)
  common.set_duration(c.gram, 'refresh_start', steps=4)
  common.set_duration(c.gram, 'refresh_every', steps=2)
  anchor(c, warmup_steps=3.0, cosine_steps=2.0)
  return c
