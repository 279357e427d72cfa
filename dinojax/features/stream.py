"""Frozen features of a source, batch by batch, on all devices: one runner.

Images of one size are read in batches of a fixed number of records, so that
several processes take part in step; whole images of many sizes are brought
together by size.
"""

import collections
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
import contextlib
import dataclasses
import itertools
import logging
import math

import jax
from jax.experimental import multihost_utils
import numpy as np

from dinojax.core import errors
from dinojax.core import text
from dinojax.core import tree
from dinojax.data import images as images_lib
from dinojax.data import pipeline
from dinojax.data import record as record_lib
from dinojax.features import backbone as backbone_lib
from dinojax.features import preprocessing as preprocessing_lib
from dinojax.features import spec as spec_lib

# Bytes of decoded images that wait for others of their size.
_MAX_WAITING_BYTES = 2**29
_GATHERED_ROWS = 2048  # of a column, from all processes at a time


@dataclasses.dataclass(frozen=True)
class Reading:
  """How images are read.

  `max_pixels` and `value_range` change the features, the others only the time
  that they take.

  Attributes:
    batch_size: images at a time over all devices, rounded up to a multiple of
      them.
    num_threads: threads that decode ahead, in each worker.
    num_workers: processes that decode; 0: threads of this one.
    max_pixels: pixels of the largest image that is read.
    value_range: black and white of deep greys, see data.images; (): as the
      backbone was trained.
  """

  batch_size: int = 64
  num_threads: int = 2
  num_workers: int = 0
  max_pixels: int = images_lib.DEFAULT_MAX_PIXELS
  value_range: tuple[float, ...] = ()


AS_USUAL = Reading()


@dataclasses.dataclass
class Batch:
  """Records of this process, and features of the readable ones.

  Attributes:
    rows: label, name and index of each image, in the order of `images`.
    bad: records that could not be read, with `problem`.
    images: [r, y, x, c] uint8, followed by black ones that fill the batch.
    features: tree of arrays [b, …] over all processes; None: no image.
    ends_section: True for the last batch of a section.
  """

  rows: list[dict]
  bad: list[dict]
  images: np.ndarray
  features: tree.Tree
  ends_section: bool = False

  def local(self) -> tree.Tree:
    """Features of `rows`, on the host."""
    return jax.tree.map(
        lambda x: own_rows(x)[:len(self.rows)], self.features)


def read(model: backbone_lib.Backbone,
         specs: Mapping[str, spec_lib.FeatureSpec],
         source: record_lib.Source,
         preprocessing: preprocessing_lib.Preprocessing | (
             preprocessing_lib.Exact),
         reading: Reading = AS_USUAL, *,
         indices: Sequence[int] | None = None,
         section_rows: int | None = None,
         reduce: Callable[[dict], tree.Tree] | None = None
         ) -> Iterator[Batch]:
  """Features of records in order; all processes get as many batches.

  Args:
    model: the backbone.
    specs: outputs and layers to read, by name.
    source: records.
    preprocessing: sizes of the images.
    reading: how images are read.
    indices: records to read; None: all.
    section_rows: records after which batches begin anew, so that the features
      of a section depend on nothing before it; None: never.
    reduce: see Backbone.run.

  Raises:
    UserError: features that the backbone does not have; whole images in
      several processes.
  """
  for spec in specs.values():
    spec.check(model.config)
  count, index = takers(model.mesh)
  by_size = preprocessing.shape is None
  if by_size and count > 1:
    raise errors.UserError(
        f'whole images differ in size, which {count} processes cannot take '
        'part in together: cut them by --crop_px, or use one process')
  return _computed(model, specs, source, preprocessing, reading, reduce,
                   _Shares(range(len(source)) if indices is None else indices,
                           section_rows, index, count,
                           _rounded(reading.batch_size, model.mesh.size)))


def warn(bad: Iterable[dict], source: record_lib.Source):
  """Logs which images an evaluation leaves out, and why."""
  for row in bad:
    logging.warning('%s: %s is left out of the evaluation: %s', *map(
        text.printable, (source.spec, row['name'], row['problem'])))


def table(mesh: jax.sharding.Mesh, batches: Iterable[Batch],
          columns: Callable[[Batch], dict[str, np.ndarray]]
          ) -> dict[str, np.ndarray]:
  """Columns of all readable records, on every process, in data order.

  Args:
    mesh: devices of the backbone.
    batches: see `read`, of images of one size.
    columns: arrays of a batch with its rows leading.

  Returns:
    The columns, and `index` and `label` of each row.
  """
  return together(mesh, [of_batch(batch, columns) for batch in batches])


def of_batch(batch: Batch,
             columns: Callable[[Batch], dict[str, np.ndarray]]
             ) -> dict[str, np.ndarray]:
  """Columns of this process's readable records of a batch, see `table`."""
  return {name: np.array([row[name] for row in batch.rows], np.int64)
          for name in ('index', 'label')} | columns(batch)


def together(mesh: jax.sharding.Mesh,
             parts: Sequence[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
  """Columns of batches, of all processes, in data order.

  Args:
    mesh: devices of the backbone.
    parts: columns of each batch of this process, see `of_batch`; all
      processes give as many.
  """
  whole = _everywhere({key: np.concatenate([part[key] for part in parts])
                       for key in parts[0]}, takers(mesh)[0])
  order = np.argsort(whole['index'], kind='stable')
  return {key: value[order] for key, value in whole.items()}


def takers(mesh: jax.sharding.Mesh) -> tuple[int, int]:
  """Number of processes with devices of the mesh, and which this one is."""
  known = sorted({device.process_index for device in mesh.devices.flat})
  return len(known), known.index(jax.process_index())


@dataclasses.dataclass(frozen=True)
class _Shares:
  """Records of each batch, and which of them this process reads."""

  indices: Sequence[int]
  section_rows: int | None
  process_index: int
  process_count: int
  batch_size: int

  @property
  def rows(self) -> int:
    """Rows of this process in a batch."""
    return self.batch_size // self.process_count

  def sections(self) -> Iterator[range]:
    """Places in `indices` of every section."""
    count = len(self.indices)
    for start in range(0, count, self.section_rows or max(count, 1)):
      yield range(start, min(start + (self.section_rows or count), count))

  def batches(self) -> Iterator[tuple[range, bool]]:
    """Places of this process in every batch; whether a section ends."""
    for section in self.sections():
      for start in range(section.start, section.stop, self.batch_size):
        first = min(start + self.process_index * self.rows, section.stop)
        yield (range(first, min(first + self.rows, section.stop)),
               start + self.batch_size >= section.stop)

  def local_indices(self) -> Sequence[int]:
    """Records that this process reads, in order."""
    if self.process_count == 1:
      return self.indices
    places = np.concatenate([np.arange(0), *(
        np.arange(batch.start, batch.stop) for batch, _ in self.batches())])
    return np.asarray(self.indices)[places]


def _computed(model, specs, source, preprocessing, reading, reduce,
              shares: _Shares) -> Iterator[Batch]:
  """Batches with features; one late, so that a device works meanwhile."""
  rows = pipeline.records_in_order(
      source, preprocessing.prepare(model.config),
      indices=shares.local_indices(), ahead=2 * shares.rows,
      num_threads=reading.num_threads, num_workers=reading.num_workers,
      max_pixels=reading.max_pixels,
      value_range=reading.value_range or model.value_range)
  shape = preprocessing.shape
  lists = (_by_count(rows, shares, np.zeros((*shape, 3), np.uint8))
           if shape else _by_size(rows, shares))
  waiting = collections.deque()
  with contextlib.closing(rows):
    for batch in lists:
      if batch.images is not None:
        batch.features = model.run(
            batch.images, specs, pixels=True, reduce=reduce)
        jax.tree.map(lambda x: x.copy_to_host_async(), batch.features)
      waiting.append(batch)
      if len(waiting) > 1:
        yield waiting.popleft()
    yield from waiting


def _by_count(rows: Iterator[dict], shares: _Shares,
              black: np.ndarray) -> Iterator[Batch]:
  """Batches of as many records; unreadable ones leave a place empty."""
  for places, ends in shares.batches():
    some = list(itertools.islice(rows, len(places)))
    good = [row for row in some if not row['problem']]
    yield Batch(good, [row for row in some if row['problem']],
                _stack(good, shares.rows, black), None, ends)


def _by_size(rows: Iterator[dict], shares: _Shares) -> Iterator[Batch]:
  """Batches of images of one size, as full as they get in a section."""
  for section in shares.sections():
    bad, last = [], None
    readable = _readable(itertools.islice(rows, len(section)), bad)
    for group in group_by_size(readable, shares.rows):
      if last is not None:
        yield last
      last = Batch(group, [], _stack(group, shares.rows), None)
    last = last or Batch([], [], None, None)
    last.bad, last.ends_section = bad, True
    yield last


def _readable(rows: Iterable[dict], bad: list[dict]) -> Iterator[dict]:
  """The rows with an image; the others are put into `bad`."""
  for row in rows:
    if row['problem']:
      bad.append(row)
    else:
      yield row


def group_by_size(rows: Iterable[dict], batch_size: int,
                  max_bytes: int = _MAX_WAITING_BYTES
                  ) -> Iterator[list[dict]]:
  """Rows as lists of up to `batch_size` with images of the same size.

  Args:
    rows: rows with `image`.
    batch_size: length of full lists.
    max_bytes: bytes of images that wait for others of their size; beyond it
      the largest list is given as it is.
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


def _stack(rows: list[dict], count: int,
           black: np.ndarray | None = None) -> np.ndarray:
  """[count, y, x, c] images of rows, taken from them, filled up with black."""
  shape = black.shape if black is not None else rows[0]['image'].shape
  out = np.zeros((count, *shape), np.uint8)
  for place, row in enumerate(rows):
    out[place] = row.pop('image')
  return out


def _rounded(batch_size: int, num_devices: int) -> int:
  return -(-batch_size // num_devices) * num_devices


def own_rows(x: jax.Array) -> np.ndarray:
  """This process's rows of a global array, in order."""
  if x.is_fully_addressable:
    return np.asarray(x)
  parts = {part.index[0].start or 0: part.data
           for part in x.addressable_shards}
  return np.concatenate([np.asarray(parts[i]) for i in sorted(parts)])


def _everywhere(columns: dict[str, np.ndarray],
                process_count: int) -> dict[str, np.ndarray]:
  """Rows of all processes, one process after the other."""
  if process_count == 1:
    return columns
  gather = lambda x: np.asarray(multihost_utils.process_allgather(x))
  counts = gather(np.int32(len(columns['index'])))
  out = {}
  for name, value in columns.items():
    # A few at a time: what is gathered lies on every device.
    slices = []
    for start in range(0, max(int(counts.max()), 1), _GATHERED_ROWS):
      padded = np.zeros((_GATHERED_ROWS, *value.shape[1:]), value.dtype)
      some = value[start:start + _GATHERED_ROWS]
      padded[:len(some)] = some
      slices.append(gather(padded))
    whole = np.concatenate(slices, axis=1)  # [processes, rows, …]
    out[name] = np.concatenate([
        rows[:count] for rows, count in zip(whole, counts, strict=True)])
  return out
