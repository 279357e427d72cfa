"""Images to records, weights in and weights out.

  dinojax convert records --source=folder:DIR --out=DIR
  dinojax convert import --source=FILE_OR_FOLDER_OR_hf:OWNER/NAME --out=DIR
  dinojax convert export --source=DIR_OR_RUN --out=DIR --format=FORMAT
"""

from absl import flags

from dinojax.commands import call
from dinojax.core import paths
from dinojax.interop import writing
from dinojax.runs import conversions

REQUIRED = ('source', 'out')
WORDS = ('records', 'import', 'export')
ADVICE = 'the same command continues or overwrites'


def define(values: flags.FlagValues, argv: list[str]):
  """Defines the flags of one call."""
  del argv
  text, number, switch = (
      f(values) for f in (call.texts, call.numbers, call.switches))
  text('source', 'Input: folder:DIR for records, weights that dinojax.load '
       'takes for import and export.')
  text('out', 'Folder of the result.')
  number('images_per_shard', 'Images in a shard, about.', 10_000)
  flags.DEFINE_enum('format', 'meta', writing.FORMATS,
                    'Format of an export.', flag_values=values)
  text('part', 'Weights taken of a run or of a whole training: ema, student, '
       'or the name of one of several backbones in a file.', 'ema')
  text('base', 'Weights that an EoMT on a DINOv3 was trained from, where its '
       'authors\' file is imported: it holds differences.', '')
  number('num_heads', 'Attention heads; needed where imported weights are of '
         'a size that was never published.', least=None)
  number('image_px', 'Side of square images, in pixels: on import, the one '
         'that learned positions are resampled to; on export to onnx or '
         'stablehlo, the one that the program takes (224, or less where '
         'learned positions are for less).', least=None)
  switch('exact_periods', 'Import RoPE periods in float32, as transformers and '
         'timm compute them, not the rounded ones of the file.')
  switch('lossy', 'Leave out what a format cannot hold, zero or not.')
  switch('check', 'Run what was exported on two images, where its runtime is '
         'installed, and compare the features.', True)


def main(values: flags.FlagValues, words: list[str]) -> int:
  """Runs the conversion; the same command continues or overwrites."""
  source, out = map(paths.expand, (values.source, values.out))
  pick = lambda *names: {name: values[name].value for name in names}
  if words == ['records']:
    conversions.to_records(source, out, **pick('images_per_shard'))
  elif words == ['import']:
    conversions.bring_in(source, out, **pick(
        'part', 'num_heads', 'image_px', 'exact_periods', 'base'))
  else:
    conversions.take_out(source, out, **pick(
        'part', 'num_heads', 'format', 'image_px', 'lossy', 'check'))
  return 0
