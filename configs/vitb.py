"""ViT-B/14 from your own images on one GPU: the recipe of configs/vits.py.

  dinojax train --config=vitb --workdir=runs/vitb \
    --config.data.train=folder:DIR --config.data.validation=folder:VAL

Hardware: one GPU; train.num_micro_batches=4 needs less memory (not measured).
"""

from dinojax.configs import vits


def get_config(arg: str = ''):
  """`:smoke` ends in seconds."""
  return vits.get_config(arg, model='dinov2_vitb14')
