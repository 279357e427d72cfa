"""`dinojax embed --model=PATH --source=folder:DIR --out=feats.npz`.

Features of every image of a source, as one .npz, .parquet or .csv file. The
same command continues after a stop; images that cannot be read are listed.
"""

import math
import os
import sys

from absl import app
from absl import flags

from dinojax.commands import commandline
from dinojax.commands import entry as entry_lib
from dinojax.core import errors
from dinojax.core import log
from dinojax.core import paths
from dinojax.core import text
from dinojax.data import images
from dinojax.data import sources
from dinojax.features import embedding
from dinojax.features import extraction
from dinojax.features import shards
from dinojax.features import tables
from dinojax.runs import job
from dinojax.runs import weights as weights_lib

_MODEL = flags.DEFINE_string(
    'model', None, 'Weights: a file or folder that dinojax.load takes.')
_SOURCE = flags.DEFINE_string(
    'source', None, 'Images: folder:DIR, image:FILE or the path of either, '
    'arrayrecord:GLOB, tfds:NAME/SPLIT, photos:train.')
_OUT = flags.DEFINE_string(
    'out', None, 'File to write: .npz, .parquet or .csv (a column for each '
    'feature).')
_FEATURES = flags.DEFINE_enum(
    'features', 'cls', embedding.FEATURES, 'What is stored of an image.')
_LAYERS = flags.DEFINE_integer(
    'layers', 1, 'How many of the last layers are joined.', lower_bound=1)
_DTYPE = flags.DEFINE_enum(
    'dtype', 'float32', ['float32', 'float16'], 'Numbers of the features.')
_RESIZE_PX = flags.DEFINE_integer(
    'resize_px', 256, 'Length of the short side after resizing.', lower_bound=1)
_CROP_PX = flags.DEFINE_integer(
    'crop_px', None, 'Side of the square that is cut from the centre, in whole '
    'patches; default: 224.')
_KEEP_ASPECT = flags.DEFINE_bool(
    'keep_aspect', False, 'No crop: the whole image, both sides rounded to '
    'whole patches.')
_NUM_HEADS = flags.DEFINE_integer(
    'num_heads', None, 'Attention heads; needed where weights are of a size '
    'that was never published.')
_BATCH_SIZE = flags.DEFINE_integer(
    'batch_size', 64, 'Images at a time.', lower_bound=1)
_NUM_THREADS = flags.DEFINE_integer(
    'num_threads', min(os.cpu_count() or 2, 16), 'Threads that decode images.',
    lower_bound=1)
_NUM_WORKERS = flags.DEFINE_integer(
    'num_workers', 0, 'Processes that decode images; 0: threads of this one.',
    lower_bound=0)
_IMAGES_PER_SHARD = flags.DEFINE_integer(
    'images_per_shard', None, 'Images between two saves; default: 4096, '
    'fewer where features are large.', lower_bound=1)
_MAX_PIXELS = flags.DEFINE_integer(
    'max_pixels', images.DEFAULT_MAX_PIXELS, 'Largest image that is decoded, '
    'in pixels.', lower_bound=1)
_VALUE_RANGE = flags.DEFINE_list(
    'value_range', [], 'Black and white of greys of more than 8 bits, such '
    'as 0,4095; default: what the model was trained with, else 0,65535 of '
    'integers and 0,1 of floats.')
_CACHE = flags.DEFINE_string(
    'compile_cache', job.DEFAULT_COMPILE_CACHE,
    'Folder of compiled programs; empty: none.')
_SHOWN = 5


@entry_lib.guarded('the same command continues')
def main(argv: list[str]) -> int:
  """Writes the features; 0 when all are there."""
  if len(argv) > 1:
    raise app.UsageError(f'unexpected arguments {argv[1:]}')
  try:
    result = embed(*map(paths.expand, (
        _MODEL.value, _SOURCE.value, _OUT.value)), _choice())
  except errors.UserError as error:
    print(f'error: {error}', file=sys.stderr)
    return 2
  except KeyboardInterrupt:
    print('stopped: the same command continues', file=sys.stderr)
    return 130
  for name, reason in result.bad[:_SHOWN]:
    print(f'left out: {text.printable(name)}: {text.printable(reason)}')
  if len(result.bad) > _SHOWN:
    print(f'left out: {len(result.bad) - _SHOWN} more, see "bad" in the file')
  print(f'{result.num_rows} images in {_OUT.value}, '
        f'{len(result.bad)} could not be read')
  return 0


def embed(path: str, spec: str, out: str,
          choice: embedding.Choice) -> extraction.Result:
  """Opens everything, cheapest first, and computes the features."""
  tables.check(out, choice.features)
  value_range = _value_range(_VALUE_RANGE.value)
  shards.check_writable(out)
  source = sources.open_source(spec)
  job.compile_cache(_CACHE.value)
  model = weights_lib.load(path, num_heads=_NUM_HEADS.value)
  with log.Bar(len(source)) as bar:
    return extraction.extract(
        model, source, out, choice, batch_size=_BATCH_SIZE.value,
        model_name=os.path.basename(os.path.normpath(path)),
        images_per_shard=_IMAGES_PER_SHARD.value,
        num_threads=_NUM_THREADS.value, num_workers=_NUM_WORKERS.value,
        max_pixels=_MAX_PIXELS.value, value_range=value_range,
        progress=bar.show, say=bar.say)


def _value_range(words: list[str]) -> tuple[float, ...]:
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


def _choice() -> embedding.Choice:
  """What the flags ask for.

  Raises:
    UserError: --crop_px with --keep_aspect.
  """
  crop_px = _CROP_PX.value
  if _KEEP_ASPECT.value and crop_px is not None:
    raise errors.UserError(
        f'--crop_px={crop_px} cuts and --keep_aspect does not: leave one out')
  if crop_px is None and not _KEEP_ASPECT.value:
    crop_px = 224
  return embedding.Choice(
      features=_FEATURES.value, layers=_LAYERS.value, dtype=_DTYPE.value,
      resize_px=_RESIZE_PX.value, crop_px=crop_px)


def entry():
  """The `embed` entry of the console command."""
  commandline.run(main, 'embed', required=['model', 'source', 'out'])


if __name__ == '__main__':
  entry()
