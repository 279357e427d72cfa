"""ViT-L/14 with SwiGLU: DINOv2's full recipe for a large model.

  dinojax train --config=vitl14 --workdir=gs://BUCKET/l14 \
    --config.data.train=arrayrecord:gs://BUCKET/images/*.arrayrecord

Source: DINOv2's vitl14.yaml, on ImageNet-22k. Its feed-forward is a SwiGLU of
2,736; the released ViT-L/14 has an MLP, was distilled from ViT-g
(configs/vitg_distill.py), and does not fit this config.
Hardware there: 96 A100 for 3.3 days. 625,000 steps.
Expected there: k-NN 82.0, linear 84.5 on ImageNet.
First loss: 11.78 = ln 131072 for both DINO parts, half of it for iBOT.
Differs: the number of hidden patches is exact (masks.counts), where DINOv2
draws it within each bin of ratios, and spread over 64 images. bfloat16 where
DINOv2 has float16 and a loss scaler; KoLeo in float32.
"""

from dinojax.configs import common
from dinojax.configs import vitg
from dinojax.models import zoo


def get_config(arg: str = ''):
  """`:smoke` ends in seconds."""
  words = common.words(arg, ('smoke',))
  c = vitg.get_config()  # every value that is not named here is the same
  common.set_model(c, zoo.vit_config(
      'dinov2_vitl14', image_px=224, ffn='swiglu',
      ffn_hidden=zoo.swiglu_hidden(1024, 4)))
  c.model.drop_path_rate = 0.4
  c.model.layerscale = 1e-5
  c.train.group_images = 32
  c.koleo.group_images = 32
  c.mesh.fsdp = 1
  c.knn.every_epochs = 10.0
  return common.smoke(c) if 'smoke' in words else c
