"""ViT-g/14: DINOv2's largest model, 1.1 billion parameters.

  dinojax train --config=vitg --workdir=gs://BUCKET/vitg \
    --config.data.train=arrayrecord:gs://BUCKET/images/*.arrayrecord

Source: DINOv2's vitg14.yaml (12 images a GPU; the paper says batch 3072).
Hardware: 256 TPU v5e, or 64 H100. 625,000 steps; the released model took
22,000 A100-hours on a private collection of 142 M images.
Expected: the released model has k-NN 83.5, linear 86.5 on ImageNet.
First loss: 11.78 = ln 131072 for both DINO parts, half of it for iBOT.
Differs: the number of hidden patches is exact (masks.counts), where DINOv2
draws it within each bin of ratios, and spread over 64 images. bfloat16 where
DINOv2 has float16 and a loss scaler; KoLeo in float32.
"""

from dinojax.configs import common
from dinojax.models import zoo


def get_config(arg: str = ''):
  """`:smoke` ends in seconds."""
  words = common.words(arg, ('smoke',))
  c = common.base()
  c.data.train = 'tfds:imagenet2012/train'
  c.data.validation = 'tfds:imagenet2012/validation'
  c.data.num_workers = 8
  common.set_model(c, zoo.vit_config('dinov2_vitg14', image_px=224))
  c.model.drop_path_rate = 0.4
  c.model.layerscale = 1e-5
  c.model.remat = 'ffn'
  c.crops.local_px = 98

  for head, bottleneck in ((c.dino, 384), (c.ibot, 256)):
    head.num_prototypes = 131072
    head.bottleneck_dim = bottleneck
    head.weight_norm = True

  c.train.batch_size = 3072
  c.train.group_images = 12
  c.koleo.group_images = 12
  c.train.epoch_steps = 1250
  c.train.total_epochs = 500.0
  common.set_duration(c.schedules, 'freeze_last_layer', epochs=1)
  c.schedules.lr = common.curve(0.0, 2e-4, 1e-6, warmup_epochs=80.0)
  c.schedules.lr_rule = 'sqrt_1024'  # actual peak 3.464e-4
  c.schedules.weight_decay = common.curve(0.04, 0.04, 0.2)
  c.schedules.momentum = common.curve(0.994, 0.994, 1.0)
  c.schedules.teacher_temperature = common.curve(
      0.04, 0.07, 0.07, warmup_epochs=30.0)
  c.optimizer.layerwise_decay = 1.0
  c.mesh.data = -1  # on 256 chips 16: 16 copies of a state in 16 parts
  c.mesh.fsdp = 16
  c.knn.every_epochs = 10.0
  c.checkpoint.every_steps = 3750.0
  c.checkpoint.keep = 3
  c.log.every_steps = 10
  return common.smoke(c) if 'smoke' in words else c
