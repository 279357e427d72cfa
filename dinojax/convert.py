"""`dinojax convert records --source=folder:DIR --out=DIR`."""

import sys

from absl import app
from absl import flags
from rich import progress

from dinojax.core import errors
from dinojax.data import records
from dinojax.data import sources

_SOURCE = flags.DEFINE_string(
    'source', None, 'What to convert, such as folder:DIR.')
_OUT = flags.DEFINE_string('out', None, 'Folder of the shards.')
_IMAGES_PER_SHARD = flags.DEFINE_integer(
    'images_per_shard', 10_000, 'Images in a shard, about.', lower_bound=1)


def main(argv: list[str]) -> int:
  """Writes ArrayRecord shards; the same command continues."""
  if argv[1:] != ['records']:
    raise app.UsageError('use: dinojax convert records --source=… --out=…')
  try:
    source = sources.open_source(_SOURCE.value)
    shards = max(1, round(len(source) / _IMAGES_PER_SHARD.value))
    with progress.Progress(
        *progress.Progress.get_default_columns(),
        progress.MofNCompleteColumn()) as bar:
      task = bar.add_task('records', total=len(source))
      paths = records.write(
          source, _OUT.value, num_shards=shards,
          progress=lambda done, _: bar.update(task, completed=done))
  except errors.UserError as error:
    print(f'error: {error}', file=sys.stderr)
    return 2
  print(f'{len(source)} images in {len(paths)} shards: '
        f'--config.data.train="arrayrecord:{_OUT.value}/*.arrayrecord"')
  return 0


def entry():
  """The `convert` entry of the console command."""
  flags.mark_flags_as_required(['source', 'out'])
  app.run(main)


if __name__ == '__main__':
  entry()
