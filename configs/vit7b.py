"""ViT-7B/16: DINOv3's pretraining, its first stage.

  dinojax train --config=vit7b --workdir=gs://BUCKET/vit7b \
    --config.data.train=arrayrecord:gs://BUCKET/images/*.arrayrecord

Source: DINOv3's dinov3_vit7b16_pretrain.yaml.
Hardware: 256 TPU v5p (docs/performance.md); there 256 H100. 1 M steps. The
released model took 61,440 H100-hours with its later stages, on a private
collection of 1.7 billion images.
Expected: the released model, all stages, has linear 88.4 on ImageNet.
First loss: 12.48 = ln 262144 for both DINO parts; iBOT's is half of 11.50.
Differs: bfloat16 where the reference has fp8 products in the blocks; KoLeo in
float32, not bfloat16. Momentum is 0.994 as in the file, where the paper says
0.999.
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
  # The reference's builder makes RoPE in bfloat16, whatever its file says.
  common.set_model(c, zoo.vit_config('dinov3_vit7b16', rope_dtype='bfloat16'))
  c.model.drop_path_rate = 0.4
  c.model.layerscale = 1e-5
  c.model.remat = 'dots'
  c.crops.global_px = 256
  c.crops.local_px = 112
  c.crops.flip_probability = 0.0

  for head, prototypes, bottleneck, hidden in (
      (c.dino, 262144, 512, 8192), (c.ibot, 98304, 384, 4096)):
    head.num_prototypes = prototypes
    head.bottleneck_dim = bottleneck
    head.hidden_dim = hidden

  c.train.batch_size = 4096
  c.train.group_images = 16
  c.koleo.group_images = 16
  c.masks.spread_images = 16  # as there, the images of a GPU
  c.train.epoch_steps = 1000
  c.train.total_epochs = 1000.0
  common.set_duration(c.schedules, 'freeze_last_layer', epochs=5)
  c.schedules.style = 'v3'  # warm-up, then constant
  c.schedules.lr = common.curve(0.0, 5e-5, 5e-5, warmup_epochs=100.0)
  c.schedules.lr_rule = 'sqrt_1024_x4'  # actual peak 4e-4
  c.schedules.weight_decay = common.curve(0.04, 0.04, 0.04)
  c.schedules.momentum = common.curve(0.994, 0.994, 0.994)
  c.schedules.teacher_temperature = common.curve(
      0.04, 0.07, 0.07, warmup_epochs=100.0)
  c.optimizer.layerwise_decay = 0.98
  c.optimizer.clip_norm = 30.0
  c.optimizer.beta2 = 0.99
  c.mesh.fsdp = 64
  c.knn.every_epochs = 50.0
  c.checkpoint.every_steps = 1000.0
  c.checkpoint.keep = 3
  c.checkpoint.archive_every_epochs = 50.0
  c.log.every_steps = 10
  return common.smoke(c) if 'smoke' in words else c
