"""A ViT-Ti of many small worlds: tiles, flowers, fields, streets, a room.

  dinojax train --config=shared_world:./DIR --workdir=runs/shared_world

The folder, with a slash in its name, holds small public sets, each with
labels.csv or sub-folders; of their test parts only those of flowers5 are read,
by the k-NN. DINOv2's losses, 16-pixel patches, 64-pixel crops: patches of 8
cost three times as much, and seeing every image more often taught more. Two CPU
cores: an hour at most. Words after the folder, joined by commas, change one
thing each: `short` (a third of the steps), `no_koleo`, `no_ibot`, `px96`,
`last96` (a tenth more at 96 pixels, from --config.init.source), `small` (half
as wide and deep), `distilled` (`small`, from --config.distillation.source),
`seed1`.
"""

from ml_collections import config_dict

from dinojax.configs import common

# Source below DIR, and its share of the images that are seen: small sets are
# seen more often than their size would have it.
_MIXTURE = {
    'folder:{}/cifar10_jpeg/train': 0.22,
    'folder:{}/tiny_imagenet/train': 0.22,
    'folder:{}/flowers5/train': 0.1,
    'folder:{}/rsscn7_satellite/train': 0.1,
    'csv:{}/camvid/labels.csv?part=train&label_column=': 0.1,
    'csv:{}/rgbd_frames/labels.csv?part=train&label_column=': 0.04,
    'folder:{}/imagenet_1perclass/images': 0.06,
    'folder:{}/flickr8k_captions/images': 0.12,
    'folder:{}/sample_photos': 0.04}
_WORDS = ('smoke', 'short', 'no_koleo', 'no_ibot', 'px96', 'last96', 'small',
          'distilled', 'seed1')


def get_config(arg: str = ''):
  """`:DIR` and words joined by commas; `:smoke` ends in seconds."""
  folder, rest = _divided(arg)
  words = common.words(rest, _WORDS, one_of=(
      ('px96', 'last96'), ('small', 'distilled')))
  c = common.base()
  c.data.train = tuple(
      (name.format(folder), share) for name, share in _MIXTURE.items())
  c.data.validation = f'folder:{folder}/flowers5/test'
  c.knn.train = f'folder:{folder}/flowers5/train'

  c.model.embed_dim = 192
  c.model.depth = 12
  c.model.num_heads = 3
  c.model.patch_px = 16
  c.model.image_px = 64
  c.model.layerscale = 1.0  # 1e-5 is for depth; here it wastes minutes
  c.model.drop_path_rate = 0.0

  c.crops.global_px = 64
  c.crops.global_scale = (0.4, 1.0)
  c.crops.local_px = 32
  c.crops.local_scale = (0.15, 0.4)
  c.crops.num_local = 4
  c.augment.blur_sigma = (0.1, 0.7)  # pixels; 2.0 is for 224-pixel crops

  for head in (c.dino, c.ibot):
    head.num_prototypes = 1024
    head.hidden_dim = 512
    head.bottleneck_dim = 32
  c.koleo.loss_weight = 0.05

  c.train.batch_size = 64
  c.train.max_group_images = 32  # two devices of a CPU have one group each
  c.train.total_steps = 1800.0
  c.schedules.lr_rule = 'none'
  c.schedules.lr = common.curve(0.0, 1.5e-3, 1e-5, warmup_steps=40.0)
  c.schedules.weight_decay = common.curve(0.04, 0.04, 0.2)
  c.schedules.momentum = common.curve(0.98, 0.98, 1.0)
  c.schedules.teacher_temperature = common.curve(0.02, 0.02, 0.02)
  c.schedules.freeze_last_layer_steps = 5.0

  c.knn.every_steps = 100.0
  c.knn.resize_px = 96
  c.knn.crop_px = 96
  c.checkpoint.every_steps = 50.0
  c.log.every_steps = 25
  _change(c, words)
  return common.smoke(c) if 'smoke' in words else c


def _change(c: config_dict.ConfigDict, words: tuple[str, ...]):
  """Changes what the words ask for."""
  if 'no_koleo' in words:
    c.koleo.loss_weight = 0.0
  if 'no_ibot' in words:
    c.ibot.loss_weight = 0.0
  if 'small' in words or 'distilled' in words:
    c.model.embed_dim, c.model.depth, c.model.num_heads = 96, 6, 3
  if 'distilled' in words:
    c.distillation.source = 'runs/shared_world'
    for head in (c.distillation.dino, c.distillation.ibot):
      head.hidden_dim, head.bottleneck_dim = 512, 32
    c.distillation.patches = 'all'
  if 'px96' in words or 'last96' in words:
    c.crops.global_px = c.model.image_px = 96
    c.crops.local_px = 48
  if 'short' in words:
    c.train.total_steps /= 3
  if 'last96' in words:
    c.train.total_steps /= 10
    c.init.source, c.init.part = 'runs/shared_world', 'both'
    c.schedules.lr = common.curve(0.0, 2e-4, 1e-5, warmup_steps=10.0)
  c.train.total_steps = float(round(c.train.total_steps))
  c.seed = int('seed1' in words)


def _divided(arg: str) -> tuple[str, str]:
  """The folder, which has a slash in it, and the words after it."""
  first, _, rest = arg.partition(',')
  return (first, rest) if '/' in first else ('DIR', arg)
