"""Features of every image of a source, as a table, in resumable shards.

A shard is a function of the settings and its number: batches begin anew in
each, so that a killed run ends with the same bytes as any other.
"""

import collections
from collections.abc import Callable, Iterable, Iterator, Sequence
import contextlib
import dataclasses
import itertools
import math

import numpy as np

from dinojax.core import errors
from dinojax.core import paths
from dinojax.core import text
from dinojax.data import crops
from dinojax.data import identity
from dinojax.data import images as images_lib
from dinojax.data import pipeline
from dinojax.data import record as record_lib
from dinojax.features import embedding
from dinojax.features import shards as shards_lib
from dinojax.features import tables

_VERSION = 1
# Of decoded images that wait for others of their size.
_MAX_WAITING_BYTES = 2**29


@dataclasses.dataclass(frozen=True)
class Result:
  """What was done: rows in the table, [name, reason] of every bad image."""

  num_rows: int
  bad: list[list[str]]


def extract(model: embedding.Backbone, source: record_lib.Source, out: str,
            choice: embedding.Choice, *, model_name: str = '',
            batch_size: int = 64, images_per_shard: int | None = None,
            num_threads: int = 2, num_workers: int = 0,
            max_pixels: int = images_lib.DEFAULT_MAX_PIXELS,
            value_range: Sequence[float] = (),
            progress: Callable[[int], None] = lambda done: None,
            say: Callable[[str], None] = lambda line: None) -> Result:
  """Writes features of all images of a source; a stopped run continues.

  Args:
    model: the backbone.
    source: records.
    out: .npz, .parquet or .csv.
    choice: what is stored.
    model_name: kept with the result.
    batch_size: images at a time; rounded up to the devices.
    images_per_shard: None: 4096, fewer where features are large.
    num_threads: decoding ahead, in each worker.
    num_workers: processes; 0: threads of this one.
    max_pixels: larger images are left out.
    value_range: of deep greys, see data.images; (): as the model was trained.
    progress: called with the images that are done.
    say: called with sentences for the user.

  Raises:
    UserError: sizes that do not fit, another run's shards, no readable
      image, features that are not finite.
  """
  out = paths.expand(out)
  tables.check(out, choice.features)
  value_range = list(value_range or model.value_range)
  embedding.check(choice, model.config)
  per_shard = images_per_shard or embedding.default_images(choice, model.config)
  shards = shards_lib.Shards(
      out, settings(model, source, choice, model_name, per_shard,
                    max_pixels=max_pixels, value_range=value_range),
      num_rows=len(source), rows_per_shard=per_shard)
  if shards.is_finished:
    shards.remove()
    say(f'{out} is complete: nothing to do')
    return Result(*tables.summary(out))
  unit = model.config.side_px
  _say_sizes(choice, model.config, say)
  with shards.held(lambda: _check_names(shards, source)):
    start = _continue(shards, source, say)
    progress(start)
    batch_size = -(-batch_size // model.mesh.size) * model.mesh.size
    rows = pipeline.prepared_rows(
        source, embedding.preparation(choice, model.config), start=start,
        ahead=2 * batch_size, num_threads=num_threads,
        num_workers=num_workers, max_pixels=max_pixels,
        value_range=value_range)
    with contextlib.closing(rows):
      for done in _fill(shards, embedding.program(model, choice), rows, choice,
                        unit, batch_size):
        progress(done)
    return _finish(shards, source)


def _say_sizes(choice: embedding.Choice, config, say: Callable[[str], None]):
  """Names the size that whole images really get, and crops that are large."""
  unit = config.side_px
  if choice.crop_px is None and choice.resize_px % unit:
    short, _ = crops.whole_size((1, 1), short_px=choice.resize_px,
                                patch_px=unit)
    say(f'--resize_px={choice.resize_px} is rounded to {short}, whole patches '
        f'of {unit}')
  enlarged = embedding.enlarged(choice, config)
  if enlarged:
    say(enlarged)


def settings(model: embedding.Backbone, source: record_lib.Source,
             choice: embedding.Choice, model_name: str,
             images_per_shard: int, **reading) -> dict:
  """All that changes the result, but for rounding."""
  digest = embedding.digest(model.config, model.params)
  return {'version': _VERSION, 'model': f'{model_name} {digest}',
          'source': source.spec, 'images': len(source),
          shards_lib.DATA: identity.digest(identity.lines(source, sizes=True)),
          **reading,
          'mean': list(model.mean), 'std': list(model.std),
          **dataclasses.asdict(choice), 'images_per_shard': images_per_shard}


def batches(rows: Iterable[dict], batch_size: int,
            max_bytes: int = _MAX_WAITING_BYTES) -> Iterator[list[dict]]:
  """Rows as lists of up to `batch_size` with images of the same size.

  Args:
    rows: with `image`.
    batch_size: of full lists.
    max_bytes: of images that wait for others of their size; beyond it the
      largest list is given as it is.
  """
  waiting: dict[tuple, list[dict]] = {}
  held = 0
  for row in rows:
    shape = row['image'].shape
    waiting.setdefault(shape, []).append(row)
    held += row['image'].nbytes
    if len(waiting[shape]) < batch_size:
      if held <= max_bytes:
        continue
      shape = max(waiting, key=lambda s: (len(waiting[s]) * math.prod(s), s))
    held -= len(waiting[shape]) * math.prod(shape)
    yield waiting.pop(shape)
  for shape in sorted(waiting):
    yield waiting[shape]


class _Shard:
  """Rows of one shard as they come in."""

  def __init__(self, number: int, choice: embedding.Choice, unit: int):
    self.number, self._choice, self._unit = number, choice, unit
    self._rows, self._bad = [], []

  def readable(self, rows: Iterable[dict]) -> Iterator[dict]:
    """The rows with an image; the others are noted."""
    for row in rows:
      row['name'] = _plain(row['name'])
      if row['problem']:
        self._bad.append([row['name'], row['problem']])
      else:
        yield row

  def add(self, rows: list[dict], features: np.ndarray):
    """Keeps features of rows; padding follows them.

    Raises:
      UserError: not finite.
    """
    for row, value in zip(rows, features, strict=False):
      if not np.isfinite(value).all():
        fix = ('check the weights' if self._choice.dtype == 'float32'
               else 'set --dtype=float32')
        raise errors.UserError(
            f'features of {text.printable(row["name"])} are not finite: {fix}')
      self._rows.append((row['index'], row, value))

  def part(self) -> tables.Part:
    """All rows in the order of the source."""
    rows = [row for _, row, _ in sorted(self._rows, key=lambda x: x[0])]
    values = [value for *_, value in sorted(self._rows, key=lambda x: x[0])]
    patches = self._choice.features == 'patches'
    together = (np.concatenate if patches and self._choice.crop_px is None
                else np.stack)
    part = {
        'names': np.array([row['name'] for row in rows], np.str_),
        'labels': np.array([row['label'] for row in rows], np.int64),
        'features': (together(values) if values
                     else np.zeros((0,), self._choice.dtype)),
        'bad': np.array(self._bad, np.str_).reshape(-1, 2),
        'index': np.array([row['index'] for row in rows], np.int64)}
    if patches:
      part['grids'] = np.array(
          [row['grid'] for row in rows], np.int32).reshape(-1, 2)
    return part


def _fill(shards: shards_lib.Shards, embed: Callable, rows: Iterator[dict],
          choice: embedding.Choice, unit: int,
          batch_size: int) -> Iterator[int]:
  """Computes and keeps what is missing; yields the images done."""
  done = 0
  for shard, batch, features in _one_late(_dispatched(
      shards, embed, rows, choice, unit, batch_size)):
    if batch is None:
      shards.write(shard.number, shard.part())
      done = shards.rows(shard.number).stop
    else:
      with np.errstate(over='ignore'):  # the shard refuses infinities
        shard.add(batch, np.asarray(features, choice.dtype))
      done = max(done, shards.rows(shard.number).start) + len(batch)
    yield done


def _dispatched(shards, embed, rows, choice, unit,
                batch_size) -> Iterator[tuple]:
  """(shard, rows, features on the device); at its end (shard, None, None)."""
  for number in range(shards.num_done, shards.count):
    shard = _Shard(number, choice, unit)
    some = itertools.islice(rows, len(shards.rows(number)))
    for batch in batches(shard.readable(some), batch_size):
      features = embed(_stack(batch, batch_size))
      features.copy_to_host_async()
      for row in batch:
        image = row.pop('image')
        row['grid'] = [n // unit for n in image.shape[:2]]
      yield shard, batch, features
    yield shard, None, None


def _one_late(items: Iterable) -> Iterator:
  """Items one later, so that a device works while its last result is read."""
  waiting = collections.deque()
  for item in items:
    waiting.append(item)
    if len(waiting) > 1:
      yield waiting.popleft()
  yield from waiting


def _stack(rows: list[dict], batch_size: int) -> np.ndarray:
  """[b, y, x, c] uint8, filled up with black: one program for each size."""
  out = np.zeros((batch_size, *rows[0]['image'].shape), np.uint8)
  for place, row in enumerate(rows):
    out[place] = row['image']
  return out


def _continue(shards: shards_lib.Shards, source: record_lib.Source,
              say: Callable[[str], None]) -> int:
  """How many images are done."""
  if not shards.num_done:
    return 0
  start = shards.rows(shards.num_done - 1).stop
  say(f'continuing after {start} of {len(source)} images: '
      f'{shards.num_done} of {shards.count} shards are there')
  return start


def _check_names(shards: shards_lib.Shards, source: record_lib.Source):
  """Names an image that moved; the digest of the settings knows of all.

  Raises:
    UserError: the source has changed since.
  """
  if not shards.num_done:
    return
  last = shards.num_done - 1
  part = tables.read_part(str(shards.path(last)))
  for place in {0, len(part['index']) - 1} if len(part['index']) else ():
    index, name = int(part['index'][place]), part['names'][place]
    if _plain(source[index].name) != name:
      raise errors.UserError(
          f'image {index} of {source.spec} was {name} and is '
          f'{source[index].name}: files were added or removed; delete '
          f'{shards.folder} to start again')


def _finish(shards: shards_lib.Shards, source: record_lib.Source) -> Result:
  """Joins the shards, and deletes them.

  Raises:
    UserError: no image could be read.
  """
  result = Result(0, [])
  for number in range(shards.count):
    count, bad = tables.summary(str(shards.path(number)))
    result = Result(result.num_rows + count, result.bad + bad)
  if not result.num_rows:
    shards.remove()
    raise errors.UserError(
        f'none of the {len(source)} images of {source.spec} can be read, the '
        f'first ({text.printable(result.bad[0][0])}) because: '
        f'{result.bad[0][1]}; check the source')
  shards.join(source.classes)
  shards.remove()
  return result


def _plain(name: str) -> str:
  """Names of files may hold bytes that are not text."""
  return name.encode('utf-8', 'backslashreplace').decode()
