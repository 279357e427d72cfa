"""ViT-L/16 on ImageNet-1k: DINOv2's short recipe, or DINOv3's by `:v3`.

  dinojax train --config=vitl --workdir=gs://BUCKET/vitl \
    --config.data.train=arrayrecord:gs://BUCKET/imagenet/train*.arrayrecord
  dinojax train --config=vitl:v3 …

Source: DINOv2's vitl16_short.yaml and DINOv3's vitl_im1k_lin834.yaml.
Hardware there: 32 A100 for a day; 32 H100 for 14 to 20 hours.
Expected there: k-NN 81.6, linear 82.9 (v2); k-NN 82.0, linear 83.5 (v3).
First loss: 11.09 = ln 65536 for both DINO parts, half of it for iBOT.
Differs: group_images is the references' images a GPU (64). DINOv2 draws the
number of hidden patches within each bin of ratios; here it is exact.
bfloat16 where DINOv2 has float16 and a loss scaler; KoLeo in float32.
"""

from dinojax.configs import common
from dinojax.models import zoo


def get_config(arg: str = ''):
  """`v2` (default) or `v3`; `smoke` and `v3,smoke` end in seconds."""
  words = common.words(
      arg, ('v2', 'v3', 'smoke'), one_of=(('v2', 'v3'),))
  c = common.base()
  c.data.train = 'tfds:imagenet2012/train'
  c.data.validation = 'tfds:imagenet2012/validation'
  c.data.num_workers = 8

  c.train.batch_size = 2048
  c.train.group_images = 64
  c.koleo.group_images = 64
  c.train.epoch_steps = 1250  # an "epoch" of the references, whatever the data
  c.train.total_epochs = 100.0
  common.set_duration(c.schedules, 'freeze_last_layer', epochs=1)
  c.schedules.weight_decay = common.curve(0.04, 0.04, 0.4)
  c.schedules.momentum = common.curve(0.992, 0.992, 1.0)
  c.schedules.teacher_temperature = common.curve(
      0.04, 0.07, 0.07, warmup_epochs=30.0)
  c.optimizer.layerwise_decay = 0.9
  c.knn.every_epochs = 10.0
  c.checkpoint.every_steps = 3750.0
  c.checkpoint.keep = 3
  c.log.every_steps = 10
  (version3 if 'v3' in words else version2)(c)
  c.model.drop_path_rate = 0.3
  c.model.layerscale = 1e-5
  c.model.remat = 'blocks'
  return common.smoke(c) if 'smoke' in words else c


def version2(c):
  """Softmax centring, one head for CLS and patches, learned positions."""
  common.set_model(c, zoo.vit_config(
      'dinov2_vitl14', patch_px=16, image_px=224))
  c.dino.weight_norm = True
  c.ibot.weight_norm = True
  c.ibot.separate_head = False
  c.teacher.centering = 'softmax'
  c.schedules.lr = common.curve(0.0, 0.004, 1e-6, warmup_epochs=10.0)
  c.schedules.lr_rule = 'sqrt_1024'  # actual peak 0.005657
  c.schedules.style = 'v2'


def version3(c):
  """Sinkhorn-Knopp, separate heads, RoPE in bfloat16 as it was trained."""
  common.set_model(c, zoo.vit_config(
      'dinov3_vitl16', num_registers=0, norm_epsilon=1e-6, mask_k_bias=False,
      rope_rescale=None, rope_dtype='bfloat16'))
  c.teacher.centering = 'sinkhorn_knopp'
  # DINOv3's config has no `schedules` section, so v1 schedules: end unscaled.
  c.schedules.lr = common.curve(0.0, 0.001, 1e-6, warmup_epochs=10.0)
  c.schedules.lr_rule = 'sqrt_1024_x4'  # actual peak 0.005657
  c.schedules.style = 'v2'
