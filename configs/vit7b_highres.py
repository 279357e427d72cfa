"""ViT-7B/16: DINOv3's third stage, crops of 512 and 768 pixels.

  dinojax train --config=vit7b_highres \
    --config.init.source=gs://BUCKET/vit7b_gram \
    --config.gram.source=gs://BUCKET/vit7b_gram \
    --workdir=gs://BUCKET/vit7b_highres \
    --config.data.train=arrayrecord:gs://BUCKET/images/*.arrayrecord

Student and EMA start from the EMA of the run before, which is the Gram teacher
too and stays as it is. Every step draws one of five combinations of sizes.
Source: DINOv3's high_res_adapt file. 30,000 steps.
Hardware: as configs/vit7b.py, which see; 8 images a chip.
Expected: the released 7B is the EMA of this stage: linear 88.4 on ImageNet.
First loss: what the run before ended with; loss/gram see docs/recipes.md.
Differs: local crops of 160 pixels where the file has 168: of these the
reference reads 10 × 10 patches and drops the last 8 pixels. bfloat16 for fp8.
Global crops are resized once, from the image, where the reference resizes its
crop for the Gram teacher again: pixels differ up to 5 % more from their
neighbours here.
"""

from dinojax.configs import common
from dinojax.configs import vit7b


def get_config(arg: str = ''):
  """`:smoke` ends in seconds, and starts from nothing."""
  words = common.words(arg, ('smoke',))
  c = vit7b.get_config()  # every value that is not named here is the same
  c.init.source = 'runs/vit7b_gram'
  c.init.part = 'ema'
  c.gram.source = 'runs/vit7b_gram'
  c.model.remat = 'blocks'
  c.crops.global_px = 512
  c.crops.gram_px = 768
  c.crops.sizes = (  # global, local, gram: pixels; probability
      (512, 112, 768, 0.3),
      (768, 112, 1152, 0.3),
      (768, 160, 1152, 0.3),
      (768, 224, 1152, 0.05),
      (768, 336, 1152, 0.05))
  c.gram.loss_weight = 1.5

  c.train.batch_size = 2048
  c.train.group_images = 8
  c.koleo.group_images = 16  # of two chips with 8 images each
  c.masks.spread_images = 8
  c.train.total_epochs = 30.0  # of 1000 steps
  common.set_duration(c.schedules, 'freeze_last_layer', steps=0)
  c.schedules.lr = common.curve(
      0.0, 0.0, 1.25e-5, cosine_epochs=10.0)  # upwards, actual 7.07e-5
  c.schedules.momentum = common.curve(0.999, 0.999, 0.999)
  c.schedules.teacher_temperature = common.curve(0.07, 0.07, 0.07)
  c.schedules.dino_local_weight = common.curve(0.5, 0.5, 0.5)
  c.knn.every_epochs = 5.0
  c.checkpoint.every_steps = 250.0
  c.checkpoint.archive_every_epochs = 5.0
  return smoke(c) if 'smoke' in words else c


def smoke(c):
  """Two combinations of sizes, anchored to the EMA of the first step."""
  common.smoke(c)
  c.init.source = c.gram.source = None
  c.gram.start_steps = 1.0
  small, patch = c.crops.global_px, c.model.patch_px
  c.crops.gram_px = small + 2 * patch
  c.crops.sizes = (
      (small, 2 * patch, small + 2 * patch, 0.5),
      (small + 2 * patch, 2 * patch, small + 4 * patch, 0.5))
  # The published rate rises for ten epochs: here it rises at all.
  c.schedules.lr = common.curve(0.0, 0.0, 1.25e-5, cosine_steps=4.0)
  return c
