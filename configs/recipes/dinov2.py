"""DINOv2 whole: ViT-g/14, its 518-pixel adaptation, and S, B, L from it.

  dinojax train --recipe=dinov2 \
    --workdir=gs://BUCKET/dinov2
  dinojax train --recipe=dinov2:smoke \
    --workdir=runs/dinov2

The same command continues; `--stages=distil` runs one stage, and
`--recipe.pretrain.train.batch_size=1536` sets a value of one. What a stage
is, its source, hardware and first losses: configs/vitg.py, vitg_highres.py
and vitg_distill.py, which stand here as they are but for where they start.
Images: each stage has its own `data.train`.
Differs: the paper does not say which ViT-g teaches; here the adapted one.
`:smoke` has two students, and a few steps of each stage on drawn patterns:
minutes on a CPU.
"""

from ml_collections import config_dict

from dinojax.configs import common
from dinojax.configs import vitg
from dinojax.configs import vitg_distill
from dinojax.configs import vitg_highres


def get_config(arg: str = ''):
  """`:smoke` ends in minutes."""
  smoke = 'smoke' in common.words(arg, ('smoke',))
  c = config_dict.ConfigDict()
  c.stages = ('pretrain', 'highres', 'distil')
  c.pretrain = vitg.get_config(arg)

  c.highres = vitg_highres.get_config(arg)
  c.highres.init.source = 'stage:pretrain'
  if smoke:  # larger than before, as 518 pixels are than 224
    larger = 6 * c.highres.model.patch_px
    c.highres.model.image_px = c.highres.crops.global_px = larger

  c.distil = vitg_distill.get_config('s,b,smoke' if smoke else '')
  c.distil.distillation.source = 'stage:highres'
  return c
