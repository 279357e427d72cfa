"""What is tried with damaged bytes: each returns a word, or has a fault."""

import numpy as np

from dinojax.data import crops
from dinojax.data import images

_CROPS = crops.Crops(num_global=2, global_px=16, num_local=1, local_px=8)


def image(data: bytes) -> str:
  """An image, as training, evaluation or `embed` reads it."""
  use = (
      lambda opened: crops.multi_crop(
          opened, np.random.default_rng(0), _CROPS),
      lambda opened: crops.center_crop(opened, resize_px=16, crop_px=16),
      lambda opened: crops.whole(opened, short_px=16, patch_px=8)
  )[len(data) % 3]
  try:
    use(images.open_image(data))
  except images.BadImage as error:
    assert error.reason.isprintable(), error.reason
    return 'bad image'
  return 'read'
