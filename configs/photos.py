"""Photographs on a laptop or a small GPU: ViT-Ti/16 or S/16, 96 to 160 pixels.

  dinojax train --config=photos --workdir=runs/photos \
    --config.data.train=folder:DIR --config.data.validation=folder:LABELLED
  dinojax train --config=photos:s,160,16gb …

Words: `ti` or `s`; `96`, `128` or `160` pixels; `4gb`, `8gb`, `16gb` or `24gb`
of memory, which choose the batch. Without: `ti,128,8gb`. DINOv2's losses; the
references give no recipe for this size: rates and EMA are those that worked on
configs/small_images.py, LayerScale starts at 1 because training is short.
`dinojax train --data=DIR` chooses all of this, and more, by itself.
Hardware: any computer with the memory named; memory is estimated before
anything is compiled. Time: `dinojax doctor --config=…` measures it.
First loss: 6.93 = ln 1024 for both DINO parts, half of it for iBOT.
"""

from dinojax.configs import common
from dinojax.models import zoo

# Images of a batch by model, pixels and memory: what the estimate of a step in
# float32 allows (`python -m dinojax.planning.cards --photos`).
BATCHES = {
    ('ti', 96): {'4gb': 128, '8gb': 256, '16gb': 256, '24gb': 256},
    ('ti', 128): {'4gb': 64, '8gb': 128, '16gb': 256, '24gb': 256},
    ('ti', 160): {'4gb': 32, '8gb': 64, '16gb': 128, '24gb': 256},
    ('s', 96): {'4gb': 32, '8gb': 128, '16gb': 256, '24gb': 256},
    ('s', 128): {'4gb': 32, '8gb': 64, '16gb': 128, '24gb': 256},
    ('s', 160): {'4gb': 16, '8gb': 32, '16gb': 64, '24gb': 128}}

_SIZES, _PIXELS = ('ti', 's'), ('96', '128', '160')
_MEMORY = ('4gb', '8gb', '16gb', '24gb')


def get_config(arg: str = ''):
  """`ti` or `s`, pixels and memory, joined by commas; `smoke`: seconds."""
  words = common.words(
      arg, (*_SIZES, *_PIXELS, *_MEMORY, 'smoke'),
      one_of=(_SIZES, _PIXELS, _MEMORY))
  choose = lambda known, default: next(
      (word for word in words if word in known), default)
  size = choose(_SIZES, 'ti')
  px = int(choose(_PIXELS, '128'))
  memory = choose(_MEMORY, '8gb')
  c = common.base()
  c.data.train = 'folder:images'
  c.data.num_threads = 4
  set_model(c, size, patch_px=16)
  set_crops(c, px, patch_px=16)
  set_batch(c, BATCHES[size, px][memory])
  common.set_duration(c.train, 'total', epochs=100)
  common.set_duration(c.checkpoint, 'every', epochs=1)
  common.set_duration(c.knn, 'every', epochs=5)
  return common.smoke(c) if 'smoke' in words else c


def set_model(c, size: str, *, patch_px: int):
  """A ViT of a published size, started for short training."""
  for name, value in zoo.size(size).items():
    c.model[name] = value
  c.model.ffn_hidden = 4 * c.model.embed_dim
  c.model.patch_px = patch_px
  c.model.layerscale = 1.0
  c.model.drop_path_rate = 0.0


def set_crops(c, px: int, *, patch_px: int, num_local: int = 6):
  """Two global crops, and local ones of half their side."""
  c.model.image_px = px
  c.crops.global_px = px
  c.crops.local_px = round(px / 2 / patch_px) * patch_px
  c.crops.num_local = num_local
  c.augment.blur_sigma = (0.1, 2.0 * px / 224)  # pixels; 2.0 is for 224
  c.knn.resize_px = px
  c.knn.crop_px = px


def set_batch(c, batch: int):
  """A batch, and what follows from it: groups, prototypes, rates."""
  c.train.batch_size = batch
  c.train.group_images = min(batch, 32)
  c.koleo.group_images = min(batch, 32)
  common.small_batch(c)
  for head in (c.dino, c.ibot):
    head.hidden_dim = 1024
    head.bottleneck_dim = 128
  c.schedules.lr_rule = 'sqrt_1024'
  c.schedules.lr = common.curve(0.0, 0.005, 1e-5, warmup_epochs=5.0)
  c.schedules.weight_decay = common.curve(0.04, 0.04, 0.2)
  c.schedules.momentum = common.curve(0.99, 0.99, 1.0)
  c.schedules.teacher_temperature = common.curve(0.04, 0.04, 0.04)
  common.set_duration(c.schedules, 'freeze_last_layer', steps=0)
