"""ViT-L/16 on satellite images: DINOv3's losses, the colours of SAT-493M.

  dinojax train --config=vitl_satellite \
    --workdir=runs/satellite --config.data.train=folder:DIR

The model has DINOv3's satellite ViT-L's shape, with a norm of its own for the
CLS token of local crops, so its released weights fit: `--config.init.source=…`
(heads are missing there: docs/recipes.md). Three channels.
Source: mean and deviation of the released models. For their training no file
is published: the recipe is that of configs/vitl.py:v3, ours for this use.
Hardware: as configs/vitl.py.
First loss: 11.09 = ln 65536 for both DINO parts, half of it for iBOT.
Differs: see above. Without labels there is no k-NN; set data.validation.
"""

from dinojax.configs import common
from dinojax.configs import vitl
from dinojax.models import zoo


def get_config(arg: str = ''):
  """`:smoke` ends in seconds."""
  words = common.words(arg, ('smoke',))
  c = vitl.get_config('v3')
  c.data.train = 'folder:images'
  c.data.validation = None
  common.set_model(c, zoo.vit_config(
      'dinov3_vitl16', rope_dtype='bfloat16',
      untie_global_and_local_cls_norm=True))
  c.model.drop_path_rate = 0.3
  c.augment.mean = (0.430, 0.411, 0.296)
  c.augment.std = (0.213, 0.156, 0.143)
  return common.smoke(c) if 'smoke' in words else c
