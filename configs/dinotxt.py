"""Text alignment: a text tower and a vision head on a frozen ViT-L/16.

  dinojax train --config=dinotxt --workdir=runs/text \
    --config.alignment.backbone=hf:facebook/dinov3-vitl16-pretrain-lvd1689m \
    --config.data.train='img2dataset:./CAPTIONS?empty=skip' \
    --config.text.tokenizer=clip:bpe_simple_vocab_16e6.txt.gz

Source: dino.txt of DINOv2 (arXiv 2412.16334) and DINOv3. 50,000 steps of 8,192
images on 32 GPUs of 80 GB; the papers take larger batches and captions that
were never released. ImageNet 82.3, ADE20K 24.7, Cityscapes 36.9 are published
for the ViT-L of DINOv3.

`:small` is a tower of 6 blocks of 256 for thousands of captions, on a laptop.
"""

from ml_collections import config_dict

from dinojax.configs import common
from dinojax.evals import alignment


def get_config(arg: str = ''):
  """`:small` for thousands of captions, `:smoke` ends in seconds."""
  words = common.words(arg, ('smoke', 'small'), one_of=(('smoke', 'small'),))
  c = config_dict.ConfigDict(common.section(alignment.Settings))
  for name, cls in (('alignment', alignment.Alignment),
                    ('data', alignment.Data)):
    c[name] = config_dict.ConfigDict(common.section(cls))
  c.alignment.backbone = config_dict.placeholder(str)
  c.data.train = config_dict.placeholder(str)

  c.alignment.batch_size = 8192
  c.alignment.learning_rate = 7e-4
  c.alignment.weight_decay = 1e-4
  common.set_duration(c.alignment, 'total', steps=50_000)
  common.set_duration(c.alignment, 'warmup', steps=2000)
  common.set_duration(c.alignment, 'every', steps=5000)
  common.set_duration(c.checkpoint, 'every', steps=500)
  c.checkpoint.keep = 5
  c.mesh.fsdp = 1

  if words:
    small(c)
  if 'smoke' in words:
    smoke(c)
  return c


def small(c: config_dict.ConfigDict):
  """Numbers for thousands of captions and a small backbone."""
  c.text.width = 256
  c.text.depth = 6
  c.text.num_heads = 4
  c.text.context = 48
  c.text.num_ids = 4096
  c.text.dropout = 0.1
  c.vision.depth = 1
  c.alignment.batch_size = 64
  c.alignment.learning_rate = 5e-4
  c.alignment.weight_decay = 0.05
  common.set_duration(c.alignment, 'total', steps=1500)
  common.set_duration(c.alignment, 'warmup', steps=100)
  common.set_duration(c.alignment, 'every', steps=300)
  c.crops.scale = (0.5, 1.0)
  common.set_duration(c.checkpoint, 'every', steps=300)
  c.checkpoint.keep = 2


def smoke(c: config_dict.ConfigDict):
  """Numbers that end in seconds on a laptop."""
  c.text.width = 32
  c.text.depth = 1
  c.text.num_heads = 2
  c.text.context = 16
  c.text.num_ids = 300
  c.alignment.batch_size = 8
  common.set_duration(c.alignment, 'total', steps=4)
  common.set_duration(c.alignment, 'warmup', steps=1)
  common.set_duration(c.alignment, 'every', steps=2)
  common.set_duration(c.checkpoint, 'every', steps=2)
  c.crops.px = 32
  c.log.every_steps = 1
