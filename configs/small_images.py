"""DINOv2's losses on small pictures in folders: CIFAR-sized data, one CPU.

  dinojax train --config=small_images \
    --config.data.train=folder:DIR/train \
    --config.data.validation=folder:DIR/test --workdir=runs/small

A ViT with 4-pixel patches on 32-pixel images, sub-folders as labels for the
k-NN. Two CPU cores: 40 minutes.
"""

from dinojax.configs import common


def get_config(arg: str = ''):
  """`:smoke` ends in seconds."""
  words = common.words(arg, ('smoke',))
  c = common.base()
  c.data.train = 'folder:train'
  c.data.validation = 'folder:test'

  c.model.embed_dim = 128
  c.model.depth = 4
  c.model.num_heads = 2
  c.model.patch_px = 4
  c.model.image_px = 24
  c.model.layerscale = 1.0
  c.model.token_std = 0.02

  c.crops.global_px = 24
  c.crops.global_scale = (0.4, 1.0)  # 5 % of 32 pixels would be 7 pixels
  c.crops.local_px = 12
  c.crops.local_scale = (0.15, 0.4)
  c.crops.num_local = 4

  c.dino.num_prototypes = 1024
  c.dino.hidden_dim = 512
  c.dino.bottleneck_dim = 32  # few dimensions: cosines that differ
  c.ibot.num_prototypes = 1024
  c.ibot.hidden_dim = 512
  c.ibot.bottleneck_dim = 32

  c.dino.weight_norm = True
  c.ibot.weight_norm = True

  c.train.batch_size = 64
  c.train.max_group_images = 64
  c.koleo.loss_weight = 0.05
  c.train.total_steps = 2600.0
  c.schedules.lr_rule = 'none'
  c.schedules.lr = common.curve(0.0, 2e-3, 1e-5, warmup_steps=50.0)
  c.schedules.weight_decay = common.curve(0.04, 0.04, 0.2)
  c.schedules.momentum = common.curve(0.98, 0.98, 1.0)
  c.schedules.teacher_temperature = common.curve(0.02, 0.02, 0.02)
  c.schedules.freeze_last_layer_steps = 0.0

  c.augment.blur_sigma = (0.1, 0.5)  # pixels; 2.0 erases a 32-pixel image

  c.knn.every_steps = 400.0
  c.knn.resize_px = 32
  c.knn.crop_px = 32
  c.knn.batch_size = 256
  c.checkpoint.every_steps = 250.0
  c.log.every_steps = 50
  return common.smoke(c) if 'smoke' in words else c
