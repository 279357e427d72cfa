"""The first training batch of a config, as a picture."""

from typing import Any

import jax
import numpy as np
from PIL import Image

from dinojax.core import text
from dinojax.data import sources
from dinojax.runs import batches as batches_lib
from dinojax.runs import pictures
from dinojax.train import method as method_lib
from dinojax.train import settings as settings_lib


def draw(config: Any, count: int = 8) -> Image.Image:
  """The crops of the first images after augmentation, a row an image.

  Args:
    config: see assemble.train.
    count: images that are shown.

  Raises:
    UserError: a mistake in the config, or images that are not there.
  """
  settings = method_lib.resolve(settings_lib.read(config), 'cpu')
  training = [(sources.open_training(spec), weight)
              for spec, weight in settings.data.mixture]
  batch = next(batches_lib.make(settings, training, [], 0))
  for problem in batch['problems']:
    print(f'replaced: {text.printable(problem["name"])}: '
          f'{text.printable(problem["reason"])}')
  names = ('global', 'local', 'mask', 'row')
  batch = {k: v[:count] for k, v in batch.items() if k in names}
  seen = jax.jit(lambda b: method_lib.prepare(settings, b, 0))(batch)
  return pictures.contact_sheet(
      jax.tree.map(np.asarray, seen), settings.augment.mean,
      settings.augment.std, count)
