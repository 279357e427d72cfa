"""Batches for the devices: a function of (seed, step), made in workers.

Every random choice is made per global row number before the rows are divided
among processes; process p of P makes rows p·B/P … (p+1)·B/P − 1 of every
batch. No iterator state is kept: a run that continues builds the pipeline
from its step.
"""

from collections.abc import Callable, Iterator, Sequence
import dataclasses
import functools
import signal
from typing import Any, Protocol

import grain
import numpy as np

from dinojax.core import errors
from dinojax.core import text
from dinojax.data import crops as crops_lib
from dinojax.data import images
from dinojax.data import masking
from dinojax.data import mixture
from dinojax.data import record as record_lib

_MAX_REPLACEMENTS = 64
_ENDLESS = 2**48  # rows; more than any run sees


@dataclasses.dataclass(frozen=True)
class Plan:
  """Everything that a row of training depends on; travels to the workers.

  Attributes:
    mixed: sources, with their weights.
    homogeneous: sources of whole batches, with their probabilities.
    seed: start of all random numbers.
    batch_size: rows of a step, of all processes.
    group_images: rows that share counts of masked patches.
    crops: see crops.Crops.
    masks: patches that are hidden; None: none are.
    patch_px: side of the square of pixels that a mask hides.
    max_pixels: pixels of the largest image that is read.
    value_range: black and white of deep greys, see data.images.
    gram_start: first step with Gram crops, where `crops` has them.
  """

  mixed: tuple[tuple[record_lib.Source, float], ...]
  seed: int
  batch_size: int
  group_images: int
  crops: crops_lib.Crops
  masks: masking.Masks | None
  patch_px: int
  homogeneous: tuple[tuple[record_lib.Source, float], ...] = ()
  max_pixels: int = images.DEFAULT_MAX_PIXELS
  value_range: tuple[float, ...] = ()
  gram_start: int = 0

  @functools.cached_property
  def mixture(self) -> mixture.Mixture:
    """Row numbers to records, of a source by its place in `sources`."""
    first = len(self.mixed)
    return mixture.Mixture(
        [len(source) for source in self.sources],
        tuple(weight for _, weight in self.mixed),
        homogeneous=tuple(
            (first + i, probability)
            for i, (_, probability) in enumerate(self.homogeneous)),
        seed=self.seed, batch_size=self.batch_size)

  @property
  def sources(self) -> tuple[record_lib.Source, ...]:
    """All sources, those of whole batches last."""
    return tuple(source for source, _ in (*self.mixed, *self.homogeneous))

  def __getstate__(self) -> dict:
    return {k: v for k, v in self.__dict__.items() if k != 'mixture'}

  def crops_at(self, step: int) -> crops_lib.Crops:
    """The sizes of a step; no Gram crops before they are needed."""
    crops = self.crops.of_size(size_at(self.crops, self.seed, step))
    if step < self.gram_start:
      return dataclasses.replace(crops, gram_px=None)
    return crops

  def sample(self, row: int) -> dict:
    """Crops, masks and label of one global row number."""
    rng = mixture.generator(self.seed, 1, row)
    source, index = self.mixture.locate(row)
    crops = self.crops_at(row // self.batch_size)
    out, problem = self._crop(source, index, rng, crops)
    out['row'] = np.int32(row % self.batch_size)
    out['bad'] = np.bool_(problem is not None)
    out['problem'] = problem
    if self.masks is not None:
      out['mask'] = self._masks(row, crops)
    return out

  def _crop(self, source: int, index: int, rng,
            crops: crops_lib.Crops) -> tuple[dict, dict | None]:
    """Crops of a record; of a drawn other one when it cannot be read."""
    def make(record: record_lib.Record) -> dict:
      image = images.open_image(
          record.image, max_pixels=self.max_pixels,
          value_range=self.value_range)
      return crops_lib.multi_crop(image, rng, crops) | {
          'label': np.int32(record.label)}

    return readable(self.sources[source], index, rng, make)

  def _masks(self, row: int, crops: crops_lib.Crops) -> np.ndarray:
    """[v, p] bool. Sizes by the row's group, shapes by the row."""
    views, spec = crops.num_global, self.masks
    grid = (crops.global_px // self.patch_px,) * 2
    group, member = divmod(row, self.group_images)
    groups = masking.num_groups(self.group_images, spec)
    deal, place = divmod(group, groups)
    hand = mixture.generator(self.seed, 7, deal).permutation(groups)[place]
    counts = masking.row_counts(
        self.group_images * views, grid[0] * grid[1], spec,
        mixture.generator(self.seed, 4, group), groups=groups, hand=int(hand))
    rng = mixture.generator(self.seed, 5, row)
    largest = masking.max_block(crops.global_px, self.patch_px)
    return np.stack([
        masking.row_mask(rng, grid, int(count), largest, spec).reshape(-1)
        for count in counts[member * views:(member + 1) * views]])

  def collate(self, samples: Sequence[dict]) -> dict:
    """Rows as a batch, with the masked positions of every group."""
    batch = {'problems': [s['problem'] for s in samples if s['problem']]}
    for key in samples[0]:
      if key != 'problem':
        batch[key] = np.stack([s[key] for s in samples])
    if 'mask' in batch:
      grouped = batch['mask'].reshape(
          -1, self.group_images * self.crops.num_global,
          batch['mask'].shape[-1])
      size = masking.num_masked(
          *grouped.shape[1:], self.masks,
          masking.num_groups(self.group_images, self.masks))
      pairs = [masking.collate(group, size) for group in grouped]
      batch['mask_index'] = np.stack([index for index, _ in pairs])
      batch['mask_weight'] = np.stack([weight for _, weight in pairs])
    return batch


def readable(source: record_lib.Source, index: int,
             rng: np.random.Generator,
             make: Callable[[record_lib.Record], dict]
             ) -> tuple[dict, dict | None]:
  """A record made ready; a drawn other one where it cannot be read.

  Args:
    source: records.
    index: the record that is wanted.
    rng: draws the others.
    make: makes a record ready.

  Returns:
    What `make` gives, and the problem of the record that was wanted, if any.

  Raises:
    UserError: many records in a row cannot be read.
  """
  problem = None
  for _ in range(_MAX_REPLACEMENTS):
    name = str(index)
    try:
      record = source[index]
      name = record.name
      return make(record), problem
    except (images.BadImage, OSError) as error:
      problem = problem or {'source': source.spec, 'name': name,
                            'reason': _reason(error)}
      index = int(rng.integers(len(source)))
  raise errors.UserError(
      f'{_MAX_REPLACEMENTS} records of {source.spec} in a row cannot be '
      f'decoded, the first ({text.printable(problem["name"])}) because: '
      f'{problem["reason"]}; check the source')


def size_at(crops: crops_lib.Crops, seed: int, step: int) -> int:
  """Index into `crops.sizes` that a step draws; 0 if there are none."""
  if not crops.sizes:
    return 0
  edges = np.cumsum([entry[3] for entry in crops.sizes])
  drawn = mixture.generator(seed, 6, step).random() * edges[-1]
  return int(np.searchsorted(edges, drawn, side='right'))


def _reason(error: images.BadImage | OSError) -> str:
  return getattr(error, 'reason', None) or f'unreadable: {error}'


def _read_ahead(rows: grain.MapDataset, count: int, num_threads: int,
                num_workers: int) -> grain.IterDataset:
  """Makes about `count` rows in advance; the order is always the same."""
  # The buffer is one of each worker: without the division, memory would grow
  # with their number.
  each = max(-(-count // max(num_workers, 1)), num_threads)
  rows = rows.to_iter_dataset(grain.ReadOptions(
      num_threads=num_threads, prefetch_buffer_size=each))
  if num_workers:
    # Workers before batches: the rows are the same for any number of them.
    rows = rows.mp_prefetch(
        grain.MultiprocessingOptions(num_workers=num_workers),
        worker_init_fn=_ignore_signals)
  return rows


def _ignore_signals(*_):
  """Makes a worker ignore signals: training that stops needs its rows."""
  for number in (signal.SIGINT, signal.SIGTERM):
    signal.signal(number, signal.SIG_IGN)


class Rows(Protocol):
  """A plan of rows: Plan, and examples.Examples."""

  batch_size: int
  group_images: int

  def sample(self, row: int) -> dict:
    """Arrays of one global row number."""

  def collate(self, samples: Sequence[dict]) -> dict:
    """Rows as a batch."""


class _Rows:
  """This process's rows of every batch, as a random-access sequence."""

  def __init__(self, plan: Rows, start_step: int, process_index: int,
               process_count: int):
    self._plan, self._start = plan, start_step
    self._index, self._count = process_index, process_count

  def __len__(self) -> int:
    return _ENDLESS

  def __getitem__(self, local: int) -> dict:
    per_process = self._plan.batch_size // self._count
    step, row = divmod(int(local), per_process)
    return self._plan.sample(
        (self._start + step) * self._plan.batch_size
        + self._index * per_process + row)


def train_batches(plan: Rows, start_step: int = 0, *, process_index: int = 0,
                  process_count: int = 1, num_workers: int = 0,
                  num_threads: int = 2) -> Iterator[dict]:
  """This process's share of every global batch from `start_step` on.

  Args:
    plan: sources, and everything else that rows depend on.
    start_step: number of the first step.
    process_index: number of this process.
    process_count: number of processes.
    num_workers: processes that decode; 0: threads of this one.
    num_threads: threads that decode in each of them.

  Yields numpy dicts, and of a Plan these: global [b, v, y, x, c], local and
  gram (from step `gram_start` on) uint8; label, row [b]; bad [b] (replaced);
  mask [b, v, p] bool, mask_index and mask_weight [g, m] unless `masks` is
  None; problems, a list of what could not be read.

  Raises:
    UserError: the batch does not divide into processes and groups.
  """
  unit = process_count * plan.group_images
  if plan.batch_size % unit:
    raise errors.UserError(
        f'train.batch_size={plan.batch_size} is not divisible by '
        f'{process_count} processes × train.group_images='
        f'{plan.group_images}: set it to a multiple of {unit}')
  rows = grain.MapDataset.source(
      _Rows(plan, start_step, process_index, process_count))
  share = plan.batch_size // process_count
  return iter(_read_ahead(rows, 2 * share, num_threads, num_workers).batch(
      share, drop_remainder=True, batch_fn=plan.collate))


class _InOrder:
  """Chosen records, each made ready or with a reason why not."""

  def __init__(self, source, prepare, indices, reading: dict):
    self._source, self._prepare = source, prepare
    self._indices, self._reading = indices, reading

  def __len__(self) -> int:
    return len(self._indices)

  def __getitem__(self, place: int) -> dict:
    index = int(self._indices[place])
    label, name, problem = -1, str(index), ''
    try:
      record = self._source[index]
      label, name = int(record.label), record.name
      pixels = self._prepare(
          images.open_image(record.image, **self._reading))
    except (images.BadImage, OSError) as error:
      pixels, problem = np.zeros((0, 0, 3), np.uint8), _reason(error)
    return {'image': pixels, 'label': label, 'name': name, 'index': index,
            'problem': problem}


class _Made:
  """Chosen items of any kind, each made ready or with a reason why not."""

  def __init__(self, source, make, indices):
    self._source, self._make, self._indices = source, make, indices

  def __len__(self) -> int:
    return len(self._indices)

  def __getitem__(self, place: int) -> dict:
    index = int(self._indices[place])
    name, made, problem = str(index), {}, ''
    try:
      item = self._source[index]
      name = item.name
      made = self._make(item)
    except (images.BadImage, OSError) as error:
      problem = _reason(error)
    return {'index': index, 'name': name, 'problem': problem} | made


def items_in_order(source, make: Callable[[Any], dict], *,
                   indices: Sequence[int] | None = None, ahead: int = 8,
                   num_workers: int = 0, num_threads: int = 2
                   ) -> Iterator[dict]:
  """Items of a set in order, such as images with their masks, each once.

  Args:
    source: items, which have a `name`.
    make: makes an item a dict; may raise BadImage or OSError. It travels to
      the workers.
    indices: items to read; None: all.
    ahead: number of items made in advance, about.
    num_workers: number of processes; 0: threads of this one.
    num_threads: number of threads of each.

  Yields what `make` gives, with name, index, and problem: why the item could
  not be read, '' for most.
  """
  indices = range(len(source)) if indices is None else indices
  if not len(indices):
    return
  rows = iter(_read_ahead(
      grain.MapDataset.source(_Made(source, make, indices)), ahead,
      num_threads, num_workers))
  try:
    yield from rows
  finally:
    rows.close()


def records_in_order(
    source: record_lib.Source, prepare: Callable[[images.Image], np.ndarray],
    *, indices: Sequence[int] | None = None, ahead: int = 64,
    num_workers: int = 0, num_threads: int = 2,
    max_pixels: int = images.DEFAULT_MAX_PIXELS,
    value_range: Sequence[float] = ()
) -> Iterator[dict]:
  """Records in order, each once: all reading that is not training.

  Args:
    source: records.
    prepare: makes an opened image [y, x, c] uint8; travels to the workers.
    indices: records to read; None: all.
    ahead: number of rows made in advance, about.
    num_workers: number of processes; 0: threads of this one.
    num_threads: number of threads of each.
    max_pixels: pixels of the largest image that is read.
    value_range: black and white of deep greys, see data.images.

  Yields image, label, name, index, and problem: why the image could not be
  read, '' for most.
  """
  indices = range(len(source)) if indices is None else indices
  if not len(indices):
    return
  reading = {'max_pixels': max_pixels, 'value_range': tuple(value_range)}
  rows = iter(_read_ahead(
      grain.MapDataset.source(_InOrder(source, prepare, indices, reading)),
      ahead, num_threads, num_workers))
  try:
    yield from rows
  finally:
    rows.close()
