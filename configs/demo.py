"""The laptop demo: a small ViT learns from sixteen photographs.

  python -m dinojax.main --config=configs/demo.py --workdir=runs/demo

DINOv2's losses on tiles of the photographs inside the scikit-image and
scikit-learn wheels. Two CPU cores: minutes.
"""

from configs import common


def get_config(arg: str = ''):
  """`:smoke` ends in seconds."""
  c = common.base()
  c.data.train = 'photos:train'
  c.data.validation = 'photos:validation'

  c.model.embed_dim = 192
  c.model.depth = 6
  c.model.num_heads = 3
  c.model.patch_px = 8
  c.model.image_px = 48
  c.model.layerscale = 0.1  # as deep networks need, 1e-5 is slow to leave
  c.model.drop_path_rate = 0.0

  c.crops.global_px = 48
  c.crops.global_scale = (0.32, 1.0)
  c.crops.local_px = 24
  c.crops.local_scale = (0.08, 0.32)
  c.crops.num_local = 4

  c.dino.num_prototypes = 1024
  c.dino.hidden_dim = 512
  c.dino.bottleneck_dim = 128
  c.ibot.num_prototypes = 1024
  c.ibot.hidden_dim = 512
  c.ibot.bottleneck_dim = 128

  c.train.batch_size = 64
  c.train.group_images = 64
  c.koleo.group_images = 64
  c.train.total_steps = 500.0
  c.schedules.lr_rule = 'none'
  c.schedules.lr = common.curve(0.0, 1e-3, 1e-5, warmup_steps=50.0)
  c.schedules.weight_decay = common.curve(0.04, 0.04, 0.2)
  c.schedules.momentum = common.curve(0.99, 0.99, 1.0)
  c.schedules.teacher_temperature = common.curve(
      0.04, 0.07, 0.07, warmup_steps=150.0)
  c.schedules.freeze_last_layer_steps = 20.0

  c.knn.every_steps = 250.0
  c.knn.resize_px = 64
  c.knn.crop_px = 64
  c.checkpoint.every_steps = 100.0
  c.log.every_steps = 10
  return common.smoke(c) if arg == 'smoke' else c
