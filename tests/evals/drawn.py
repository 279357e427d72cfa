"""Drawn images with a class, or a depth, of every pixel."""

import numpy as np
from PIL import Image

COLORS = np.array([(200, 60, 50), (60, 180, 70), (60, 80, 210)])
NAMES = ('red', 'green', 'blue')


def scene(rng, size):
  """(image, classes) with three stripes of their own colours, of any order.
  """
  width, height = size
  edges = np.sort(rng.integers(width // 5, width - width // 5, 2))
  order = rng.permutation(3)
  classes = order[np.searchsorted(edges, np.arange(width), side='right')]
  classes = np.tile(classes, (height, 1))
  noise = rng.normal(0, 8, (height, width, 3))
  return np.clip(COLORS[classes] + noise, 0, 255).astype(np.uint8), classes


def save(folder, kind, count, sizes, seed):
  """Writes `count` images with masks, or depths of 1, 2 and 3 metres."""
  rng = np.random.default_rng(seed)
  for part in ('images', kind):
    (folder / part).mkdir(parents=True, exist_ok=True)
  for i in range(count):
    image, classes = scene(rng, sizes[i % len(sizes)])
    Image.fromarray(image).save(folder / 'images' / f'{i:03d}.png')
    if kind == 'masks':
      classes = classes.copy()
      classes[0] = 255  # a line that is not known
      values = classes.astype(np.uint8)
    else:
      values = (1000 * (classes + 1)).astype(np.uint16)
      values[0] = 0
    Image.fromarray(values).save(folder / kind / f'{i:03d}.png')
  if kind == 'masks':
    (folder / 'classes.txt').write_text('\n'.join(NAMES))
  return folder
