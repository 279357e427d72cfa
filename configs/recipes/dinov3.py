"""DINOv3 whole: ViT-7B/16, Gram anchoring, high resolution, small models.

  dinojax train --recipe=dinov3 \
    --workdir=gs://BUCKET/dinov3
  dinojax train --recipe=dinov3:smoke \
    --workdir=runs/dinov3

The same command continues; `--stages=gram,highres` runs only these, and
`--recipe.gram.train.batch_size=2048` sets a value of one. What a stage is,
its source, hardware and first losses: configs/vit7b.py, vit7b_gram.py,
vit7b_highres.py and vit7b_distill.py, which stand here as they are but for
where they start. Images: each stage has its own `data.train`.
`:smoke` distils a ViT and a ConvNeXt, and takes a few steps of each stage on
drawn patterns: minutes on a CPU.
"""

from ml_collections import config_dict

from dinojax.configs import common
from dinojax.configs import vit7b
from dinojax.configs import vit7b_distill
from dinojax.configs import vit7b_gram
from dinojax.configs import vit7b_highres


def get_config(arg: str = ''):
  """`:smoke` ends in minutes."""
  smoke = 'smoke' in common.words(arg, ('smoke',))
  c = config_dict.ConfigDict()
  c.stages = ('pretrain', 'gram', 'highres', 'distil')
  c.pretrain = vit7b.get_config(arg)

  c.gram = vit7b_gram.get_config(arg)
  c.gram.init.source = 'stage:pretrain'
  c.gram.gram.source = 'stage:pretrain'

  c.highres = vit7b_highres.get_config(arg)
  c.highres.init.source = 'stage:gram'
  c.highres.gram.source = 'stage:gram'

  c.distil = vit7b_distill.get_config(
      'vits16,convnext_tiny,smoke' if smoke else '')
  c.distil.distillation.source = 'stage:highres'
  return c
