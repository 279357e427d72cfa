"""`dinojax predict --model=PATH --head=PATH --source=folder:DIR --out=DIR`.

Masks, segments, boxes, depths or heights of images by a trained head, with a
picture of each.
The head is one that `dinojax evaluate` trained, or a published one of DINOv2 or
DINOv3. The same command continues after a stop.
"""

import os

from absl import flags

from dinojax.commands import call
from dinojax.data import images
from dinojax.runs import predictions

REQUIRED = ('model', 'head', 'source', 'out')
ADVICE = 'the same command continues'


def define(values: flags.FlagValues, argv: list[str]):
  """Defines the flags of one call."""
  del argv
  text, number = call.texts(values), call.numbers(values)
  text('model', 'Backbone that the head was trained on: a file or folder that '
       'dinojax.load takes.')
  text('head', 'Folder of a head that `dinojax evaluate` kept, or a published '
       'file (dinov2_vits14_nyu_dpt_head.pth).')
  text('source', 'Images: folder:DIR, image:FILE or the path of either, '
       'arrayrecord:GLOB, tfds:NAME/SPLIT; geotiff:DIR for maps with a place.')
  text('out', 'Folder of the results and their pictures.')
  number('short_px', 'Pixels of the short side of an image in the backbone; '
         'default: as measured, else 480 (depths), 512 (classes).', least=None)
  text('squares_px', 'Sides of the squares of a detector, averaged: 1024,1536.')
  flags.DEFINE_bool('flips', None, 'Averages the image and its mirror image; '
                    'default: as the head was measured, else of depths.',
                    flag_values=values)
  flags.DEFINE_float('max_depth', None, 'Greatest depth of a published head '
                     'whose name does not say it, in metres.',
                     flag_values=values)
  text('classes', 'File with the names of the classes of a published head, a '
       'line each; default: numbers.')
  text('as', 'Answers of a head: semantic (a class of every pixel), panoptic '
       '(segments), instances (objects), boxes; default: as it was trained.')
  number('windows_at_once', 'Windows that go through the backbone at a time.',
         8)
  number('num_threads', 'Threads that decode images.',
         min(os.cpu_count() or 2, 16))
  number('max_pixels', 'Largest image that is decoded, in pixels.',
         images.DEFAULT_MAX_PIXELS)
  call.cache_flag(values)


def main(values: flags.FlagValues, words: list[str]) -> int:
  """Prints where everything is; 0 when all is there."""
  del words
  print(predictions.predict(predictions.Request(**{
      {'as': 'answers'}.get(name, name): values[name].value
      for name in values})))
  return 0
