"""Images to records, weights in and weights out.

  dinojax convert records --source=folder:DIR --out=DIR
  dinojax convert import --source=FILE_OR_FOLDER_OR_hf:OWNER/NAME --out=DIR
  dinojax convert export --source=DIR_OR_RUN --out=DIR --format=FORMAT
"""

import sys

from absl import app
from absl import flags
from rich import progress

from dinojax.commands import commandline
from dinojax.commands import entry as entry_lib
from dinojax.core import errors
from dinojax.core import paths
from dinojax.core import text
from dinojax.core import tree
from dinojax.data import records
from dinojax.data import sources
from dinojax.interop import checking
from dinojax.interop import store
from dinojax.interop import writing
from dinojax.runs import weights as weights_lib

_SOURCE = flags.DEFINE_string(
    'source', None, 'What to convert: folder:DIR for records, weights that '
    'dinojax.load takes for import and export.')
_OUT = flags.DEFINE_string('out', None, 'Folder of the result.')
_IMAGES_PER_SHARD = flags.DEFINE_integer(
    'images_per_shard', 10_000, 'Images in a shard, about.', lower_bound=1)
_FORMAT = flags.DEFINE_enum(
    'format', 'meta', writing.FORMATS, 'What an export is written as.')
_PART = flags.DEFINE_string(
    'part', 'ema', 'Which weights of a run or of a whole training: ema, '
    'student, or the name of one of several backbones in a file.')
_NUM_HEADS = flags.DEFINE_integer(
    'num_heads', None, 'Attention heads; needed where imported weights are of '
    'a size that was never published.')
_IMAGE_PX = flags.DEFINE_integer(
    'image_px', None, 'Side of square images: on import, that learned '
    'positions are resampled to; on export to onnx or stablehlo, that the '
    'program takes (224, or less where learned positions are for less).')
_EXACT_PERIODS = flags.DEFINE_bool(
    'exact_periods', False, 'Import RoPE periods in float32, as '
    'transformers and timm compute them, not the rounded ones of the file.')
_LOSSY = flags.DEFINE_bool(
    'lossy', False, 'Leave out what a format cannot hold, zero or not.')
_CHECK = flags.DEFINE_bool(
    'check', True, 'Run what was exported on two images, where its runtime is '
    'installed, and compare the features.')


@entry_lib.guarded('the same command continues or overwrites')
def main(argv: list[str]) -> int:
  """Runs the conversion; the same command continues or overwrites."""
  commands = {'records': to_records, 'import': bring_in, 'export': take_out}
  if len(argv) != 2 or argv[1] not in commands:
    raise app.UsageError(__doc__.strip())
  try:
    commands[argv[1]](paths.expand(_SOURCE.value), paths.expand(_OUT.value))
  except errors.UserError as error:
    print(f'error: {error}', file=sys.stderr)
    return 2
  return 0


def to_records(spec: str, out: str):
  """Writes ArrayRecord shards; the same command continues."""
  source = sources.open_source(spec)
  shards = max(1, round(len(source) / _IMAGES_PER_SHARD.value))
  with progress.Progress(
      *progress.Progress.get_default_columns(),
      progress.MofNCompleteColumn()) as bar:
    task = bar.add_task('records', total=len(source))
    written = records.write(
        source, out, num_shards=shards,
        progress=lambda done, _: bar.update(task, completed=done))
  print(f'{len(source)} images in {len(written)} shards: '
        f'--config.data.train="arrayrecord:{out}/*.arrayrecord"')


def bring_in(path: str, out: str):
  """Reads weights of another library into a folder of ours."""
  weights = weights_lib.read(
      path, part=_PART.value, num_heads=_NUM_HEADS.value,
      image_px=_IMAGE_PX.value,
      exact_periods=_EXACT_PERIODS.value)
  store.save(out, weights)
  size = tree.num_elements(weights.params) / 1e6
  heads = ' and '.join(['', *weights.heads])
  print(f'{size:.1f} M parameters{heads} ({weights.family}) in {out}: '
        f'dinojax.load({out!r})')


def take_out(path: str, out: str):
  """Writes weights in a format of another library."""
  weights = weights_lib.read(
      path, part=_PART.value, num_heads=_NUM_HEADS.value)
  kind = _FORMAT.value
  for line in writing.write(
      out, weights, kind, lossy=_LOSSY.value, image_px=_IMAGE_PX.value):
    print(text.visible(line))
  if _CHECK.value:
    print(checking.check(out, weights, kind, lossy=_LOSSY.value))


def entry():
  """The `convert` entry of the console command."""
  commandline.run(main, 'convert', required=['source', 'out'])


if __name__ == '__main__':
  entry()
