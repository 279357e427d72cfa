"""The laptop demo: a small ViT learns from sixteen photographs.

  dinojax train --config=demo --workdir=runs/demo

DINOv2's losses on tiles of the photographs inside the scikit-image and
scikit-learn wheels. Two CPU cores: minutes.
"""

from dinojax.configs import common


def get_config(arg: str = ''):
  """`:smoke` ends in seconds."""
  words = common.words(arg, ('smoke',))
  c = common.base()
  c.data.train = 'photos:train'
  c.data.validation = 'photos:validation'

  c.model.embed_dim = 128
  c.model.depth = 4
  c.model.num_heads = 2
  c.model.patch_px = 8
  c.model.image_px = 48
  c.model.layerscale = 1.0  # 1e-5 is for depth; here it wastes minutes
  c.model.drop_path_rate = 0.0

  c.crops.global_px = 48
  c.crops.global_scale = (0.32, 1.0)
  c.crops.local_px = 24
  c.crops.local_scale = (0.08, 0.32)
  c.crops.num_local = 4

  # Colour tells these photographs apart: full jitter would unlearn it.
  c.augment.jitter_probability = 0.4
  c.augment.hue = 0.05
  c.augment.grayscale_probability = 0.05

  c.augment.blur_sigma = (0.1, 0.5)  # pixels; 2.0 is for 224-pixel crops

  c.dino.num_prototypes = 512
  c.dino.hidden_dim = 512
  c.dino.bottleneck_dim = 128
  c.ibot.num_prototypes = 512
  c.ibot.hidden_dim = 512
  c.ibot.bottleneck_dim = 128

  c.train.batch_size = 64
  c.train.max_group_images = 64
  c.train.total_steps = 160.0
  c.schedules.lr_rule = 'none'
  c.schedules.lr = common.curve(0.0, 1.5e-3, 1e-5, warmup_steps=20.0)
  c.schedules.weight_decay = common.curve(0.04, 0.04, 0.2)
  c.schedules.momentum = common.curve(0.96, 0.96, 1.0)
  c.schedules.teacher_temperature = common.curve(0.04, 0.04, 0.04)
  c.schedules.freeze_last_layer_steps = 5.0

  c.knn.every_steps = 80.0
  c.knn.resize_px = 64
  c.knn.crop_px = 64
  c.checkpoint.every_steps = 40.0
  c.log.every_steps = 10
  return common.smoke(c) if 'smoke' in words else c
