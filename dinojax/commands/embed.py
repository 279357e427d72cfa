"""`dinojax embed --model=PATH --source=folder:DIR --out=feats.npz`.

Features of every image of a source, as one .npz, .parquet or .csv file. The
same command continues after a stop; images that cannot be read are listed.
"""

import os

from absl import flags

from dinojax.commands import call
from dinojax.data import images
from dinojax.features import embedding
from dinojax.runs import embeddings

REQUIRED = ('model', 'source', 'out')
ADVICE = 'the same command continues'


def define(values: flags.FlagValues, argv: list[str]):
  """Defines the flags of one call."""
  del argv
  text, number, switch = (
      f(values) for f in (call.texts, call.numbers, call.switches))
  choose = lambda name, text, known: flags.DEFINE_enum(
      name, known[0], known, text, flag_values=values)
  text('model', 'Weights: a file or folder that dinojax.load takes.')
  text('source', 'Images: folder:DIR, image:FILE or the path of either, '
       'arrayrecord:GLOB, tfds:NAME/SPLIT, photos:train.')
  text('out', 'File: .npz, .parquet or .csv (a column for each feature).')
  choose('features', 'Features stored of an image.', embedding.FEATURES)
  number('layers', 'Number of the last layers that are joined.', 1)
  choose('dtype', 'Type of the numbers.', ('float32', 'float16'))
  number('resize_px', 'Pixels of the short side after resizing.', 256)
  number('crop_px', 'Side of the square cut from the centre, in pixels, whole '
         'patches; default: 224.', least=None)
  switch('keep_aspect', 'No crop: the whole image, both sides rounded to '
         'whole patches.')
  number('num_heads', 'Attention heads; needed where weights are of a size '
         'that was never published.', least=None)
  number('batch_size', 'Images at a time.', 64)
  cores = min(os.cpu_count() or 2, 16)
  number('num_threads', 'Threads that decode images.', cores)
  number('num_workers', 'Processes that decode; 0: threads alone.', 0, least=0)
  number('images_per_shard', 'Images between two saves; default: 4096, fewer '
         'where features are large.')
  number('max_pixels', 'Largest image that is decoded, in pixels.',
         images.DEFAULT_MAX_PIXELS)
  flags.DEFINE_list(
      'value_range', [], 'Black and white of greys of more than 8 bits, such '
      'as 0,4095; default: what the model was trained with, else 0,65535 of '
      'integers and 0,1 of floats.', flag_values=values)
  call.cache_flag(values)


def main(values: flags.FlagValues, words: list[str]) -> int:
  """Writes the features; 0 when all are there."""
  del words
  embeddings.embed(**{name: values[name].value for name in values})
  return 0
