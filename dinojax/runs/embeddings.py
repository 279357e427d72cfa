"""Features of the images of a source, as a file."""

from collections.abc import Sequence
import math
import os

from dinojax.core import atomic
from dinojax.core import errors
from dinojax.core import log
from dinojax.core import paths
from dinojax.core import text
from dinojax.data import images
from dinojax.data import sources
from dinojax.features import embedding
from dinojax.features import stream
from dinojax.features import tables
from dinojax.runs import assemble
from dinojax.runs import models as models_lib

_SHOWN = 5
_CROP_PX = 224


def embed(model: str, source: str, out: str, *, features: str = 'cls',
          layers: int = 1, dtype: str = 'float32', resize_px: int = 256,
          crop_px: int | None = None, keep_aspect: bool = False,
          num_heads: int | None = None, batch_size: int = 64,
          num_threads: int = 2, num_workers: int = 0,
          images_per_shard: int | None = None,
          max_pixels: int = images.DEFAULT_MAX_PIXELS,
          value_range: Sequence[str] = (),
          compile_cache: str = '') -> embedding.Result:
  """Opens everything, cheapest first, and writes the features.

  The same call continues what was stopped. Arguments are the flags of
  `dinojax embed`, whose help describes them.

  Raises:
    UserError: a value that does not suit the model, nothing to read, or a
      file that cannot be written.
  """
  model, source, out = map(paths.expand, (model, source, out))
  choice = _choice(features, layers, dtype, resize_px, crop_px, keep_aspect)
  tables.check(out, features)
  greys = _value_range(value_range)
  atomic.check_out(out)
  opened = sources.open_source(source)
  assemble.compile_cache(compile_cache)
  backbone = models_lib.load(model, num_heads=num_heads)
  with log.Bar(len(opened)) as bar:
    result = embedding.embed(
        backbone, opened, out, choice,
        model_name=os.path.basename(os.path.normpath(model)),
        reading=stream.Reading(batch_size, num_threads, num_workers,
                               max_pixels, greys),
        images_per_shard=images_per_shard, progress=bar.show, say=bar.say)
  _tell(result, out)
  return result


def _tell(result: embedding.Result, out: str):
  """Says what was written, and what could not be read."""
  for name, reason in result.bad[:_SHOWN]:
    print(f'left out: {text.printable(name)}: {text.printable(reason)}')
  if len(result.bad) > _SHOWN:
    print(f'left out: {len(result.bad) - _SHOWN} more, see "bad" in the file')
  print(f'{result.num_rows} images in {out}, '
        f'{len(result.bad)} could not be read')


def _value_range(words: Sequence[str]) -> tuple[float, ...]:
  """(black, white), or ().

  Raises:
    UserError: not two different numbers.
  """
  try:
    numbers = tuple(map(float, words))
  except ValueError:
    numbers = (math.nan,)
  if numbers and not (len(numbers) == 2 and numbers[0] != numbers[1]
                      and all(map(math.isfinite, numbers))):
    raise errors.UserError(
        f'--value_range={",".join(words)} is not two different numbers: '
        'write black and white, such as 0,4095')
  return numbers


def _choice(features: str, layers: int, dtype: str, resize_px: int,
            crop_px: int | None, keep_aspect: bool) -> embedding.Choice:
  """Chooses what is stored of an image; crops by default.

  Raises:
    UserError: --crop_px with --keep_aspect.
  """
  if keep_aspect and crop_px is not None:
    raise errors.UserError(
        f'--crop_px={crop_px} cuts and --keep_aspect does not: leave one out')
  if crop_px is None and not keep_aspect:
    crop_px = _CROP_PX
  return embedding.Choice(
      features=features, layers=layers, dtype=dtype, resize_px=resize_px,
      crop_px=crop_px)
