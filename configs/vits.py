"""ViT-S/14 from your own images on one GPU: DINOv2's losses, small batch.

  dinojax train --config=vits --workdir=runs/vits \
    --config.data.train=folder:DIR --config.data.validation=folder:VAL

The references give no recipe for this size or batch: this one scales their
learning rate by the square root of the batch, takes fewer prototypes and a
shorter EMA (common.small_batch). Leave data.validation unset without labels.
Hardware: one GPU (memory not measured; train.num_micro_batches needs less).
First loss: 6.93 = ln 1024 for both DINO parts, half of it for iBOT.
"""

from dinojax.configs import common
from dinojax.models import zoo


def get_config(arg: str = '', model: str = 'dinov2_vits14'):
  """`:smoke` ends in seconds."""
  words = common.words(arg, ('smoke',))
  c = common.base()
  c.data.train = 'folder:images'
  c.data.num_workers = 8
  common.set_model(c, zoo.vit_config(model, image_px=224))
  c.model.drop_path_rate = 0.1
  c.model.layerscale = 1e-5
  c.crops.local_px = 98

  c.train.batch_size = 256
  c.train.total_epochs = 100.0
  common.set_duration(c.schedules, 'freeze_last_layer', epochs=1)
  c.schedules.lr = common.curve(0.0, 0.002, 1e-6, warmup_epochs=10.0)
  c.schedules.lr_rule = 'sqrt_1024'  # actual peak 0.001
  c.schedules.weight_decay = common.curve(0.04, 0.04, 0.4)
  c.schedules.momentum = common.curve(0.992, 0.992, 1.0)
  c.schedules.teacher_temperature = common.curve(
      0.04, 0.07, 0.07, warmup_epochs=30.0)
  c.optimizer.layerwise_decay = 0.9
  c.knn.every_epochs = 5.0
  common.set_duration(c.checkpoint, 'every', epochs=1)
  common.small_batch(c)
  return common.smoke(c) if 'smoke' in words else c
