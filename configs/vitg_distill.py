"""ViT-S, B and L/14 from a frozen ViT-g/14: DINOv2's small models.

  dinojax train --config=vitg_distill \
    --config.distillation.source=gs://BUCKET/vitg --workdir=gs://BUCKET/sbl \
    --config.data.train=arrayrecord:gs://BUCKET/images/*.arrayrecord
  dinojax train --config=vitg_distill:s …

Three students learn at once, or those that are named: `s`, `b`, `l`, `s,b`.
The teacher needs its heads: a run of configs/vitg.py has them. The result is
each student's EMA. For `:smoke` train the teacher first:

  dinojax train --config=vitg:smoke --workdir=runs/teacher
  dinojax train --config=vitg_distill:smoke \
    --workdir=runs/students

Source: the DINOv2 paper and its authors in the issues: nothing is masked, no
drop path, the patch loss on all patches. No file was published, so lengths,
batch and rates are ours: those of vitl14.yaml.
Hardware: as configs/vitg.py. 625,000 steps; the released S, B and L took 4,500,
5,300 and 8,000 A100-hours.
Expected: the released models have k-NN 79.0, 82.1, 83.5 (S, B, L).
First loss: 11.78 = ln 131072 for all three: iBOT's is not halved here.
"""

from dinojax.configs import common
from dinojax.configs import vitg
from dinojax.models import zoo

_MODELS = {'s': 'dinov2_vits14', 'b': 'dinov2_vitb14', 'l': 'dinov2_vitl14'}


def get_config(arg: str = ''):
  """Students by name, all without; `smoke` ends in seconds."""
  words = common.words(arg, (*_MODELS, 'smoke'))
  names = [name for name in _MODELS if name in words] or list(_MODELS)
  c = vitg.get_config()
  c.train.group_images = 3  # a share is of groups: quarters, on 256 chips
  c.distillation.model = 'dinov2_vitg14'
  c.distillation.patches = 'all'
  for head, bottleneck in (
      (c.distillation.dino, 384), (c.distillation.ibot, 256)):
    head.bottleneck_dim = bottleneck
    head.weight_norm = True
  models = {name: zoo.vit_config(_MODELS[name], image_px=224, remat='ffn')
            for name in names}
  c.model = common.model(models[names[-1]])
  if len(names) > 1:
    c.students = {name: common.student(model)
                  for name, model in models.items()}
  return common.smoke_distillation(c) if 'smoke' in words else c
