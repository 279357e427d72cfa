"""ViT-7B/16: DINOv3's second stage, Gram anchoring.

  dinojax train --config=vit7b_gram \
    --config.init.source=gs://BUCKET/vit7b --workdir=gs://BUCKET/vit7b_gram \
    --config.data.train=arrayrecord:gs://BUCKET/images/*.arrayrecord

Patch similarities are pulled to those of a Gram teacher, which sees undistorted
crops of 512 pixels and is renewed from the EMA three times. It starts as the
EMA that init.source holds; gram.source names another, an earlier run.
Source: DINOv3's gram_anchor file, steps 1.0 M to 1.2 M.
Hardware: as configs/vit7b.py, which see, and one more forward pass.
First loss: what the run before ended with; loss/gram see docs/recipes.md.
Differs: a run of its own, so steps count from 0 where the reference resumes at
1.0 M: 200,000 steps, renewed at 10, 20 and 30 thousand. The optimizer's
moments start anew: a warm-up of 1,000 steps, ours. bfloat16 for fp8. Global
crops are resized once, from the image, where the reference resizes its crop of
512 pixels again: pixels differ 5 % more from their neighbours here.
"""

from dinojax.configs import common
from dinojax.configs import vit7b


def get_config(arg: str = ''):
  """`:smoke` ends in seconds, and starts from nothing."""
  words = common.words(arg, ('smoke',))
  c = vit7b.get_config()  # every value that is not named here is the same
  c.init.source = 'runs/vit7b'
  c.init.part = 'both'
  c.model.remat = 'blocks'
  c.crops.gram_px = 512

  c.gram.loss_weight = 1.0  # times schedules.gram_weight
  c.gram.refresh_every_steps = 10_000.0
  c.gram.refresh_start_steps = 10_000.0
  c.gram.max_refreshes = 3

  c.train.total_epochs = 200.0  # of 1000 steps
  common.set_duration(c.schedules, 'freeze_last_layer', steps=0)
  c.schedules.lr = common.curve(0.0, 3e-5, 3e-5, warmup_epochs=1.0)  # 2.4e-4
  c.schedules.momentum = common.curve(0.999, 0.999, 0.999)
  c.schedules.teacher_temperature = common.curve(0.07, 0.07, 0.07)
  c.schedules.gram_weight = common.curve(0.0, 0.0, 2.0, cosine_epochs=1.0)
  c.schedules.dino_local_weight = common.curve(
      1.0, 1.0, 0.5, cosine_epochs=1.0)
  c.knn.every_epochs = 10.0
  c.checkpoint.archive_every_epochs = 10.0
  return smoke(c) if 'smoke' in words else c


def smoke(c):
  """Anchored to the EMA of the first step, which is renewed twice."""
  common.smoke(c)
  c.init.source = None
  c.gram.start_steps = 1.0
  c.crops.gram_px = 2 * c.crops.global_px
  c.gram.refresh_every_steps = 2.0
  c.gram.refresh_start_steps = 2.0
  c.gram.max_refreshes = 2
  return c
