"""Batches for the devices: a function of (seed, step), made in workers.

Every random choice is made per global row number before the rows are divided
among processes; process p of P makes rows p·B/P … (p+1)·B/P − 1 of every
batch. No iterator state is kept: a run that continues builds the pipeline
from its step.
"""

from collections.abc import Iterator, Sequence
import dataclasses
import functools

import grain
import numpy as np

from dinojax.data import crops as crops_lib
from dinojax.data import images
from dinojax.data import masking
from dinojax.data import mixture
from dinojax.data import sources as sources_lib

_MAX_REPLACEMENTS = 64
_ENDLESS = 2**48  # rows; more than any run sees


@dataclasses.dataclass(frozen=True)
class Plan:
  """What a row of training is made of; travels to the workers."""

  sources: tuple[sources_lib.Source, ...]
  weights: tuple[float, ...]
  homogeneous: tuple[tuple[int, float], ...]
  seed: int
  batch_size: int
  group_images: int
  crops: crops_lib.Crops
  masks: masking.Masks | None
  patch_px: int
  max_pixels: int

  @functools.cached_property
  def mixture(self) -> mixture.Mixture:
    """Row numbers to records."""
    return mixture.Mixture(
        [len(s) for s in self.sources], self.weights,
        homogeneous=self.homogeneous, seed=self.seed,
        batch_size=self.batch_size)

  def __getstate__(self) -> dict:
    return {k: v for k, v in self.__dict__.items() if k != 'mixture'}

  def sample(self, row: int) -> dict:
    """Crops, masks and label of one global row number."""
    rng = mixture.generator(self.seed, 1, row)
    source, index = self.mixture.locate(row)
    out, problem = self._crop(source, index, rng)
    out['row'] = np.int32(row % self.batch_size)
    out['bad'] = np.bool_(problem is not None)
    out['problem'] = problem
    if self.masks is not None:
      out['mask'] = self._masks(row)
    return out

  def _crop(self, source: int, index: int, rng) -> tuple[dict, dict | None]:
    """Crops of a record; of a drawn other one when it cannot be read."""
    problem = None
    chosen = self.sources[source]
    for _ in range(_MAX_REPLACEMENTS):
      try:
        record = chosen[index]
        image = images.open_image(record.image, max_pixels=self.max_pixels)
        out = crops_lib.multi_crop(image, rng, self.crops)
        return out | {'label': np.int32(record.label)}, problem
      except (images.BadImage, OSError) as error:
        reason = getattr(error, 'reason', None) or f'unreadable: {error}'
        problem = problem or {
            'source': chosen.spec, 'name': _name(chosen, index),
            'reason': reason}
        index = int(rng.integers(len(chosen)))
    raise RuntimeError(
        f'{_MAX_REPLACEMENTS} records of {chosen.spec} in a row cannot be '
        f'decoded, the first because: {problem["reason"]}')

  def _masks(self, row: int) -> np.ndarray:
    """[v, p] bool. Mask sizes are dealt within a group, shapes per row."""
    views, spec = self.crops.num_global, self.masks
    grid = (self.crops.global_px // self.patch_px,) * 2
    group, member = divmod(row, self.group_images)
    counts = masking.row_counts(
        self.group_images * views, grid[0] * grid[1], spec,
        mixture.generator(self.seed, 4, group))
    rng = mixture.generator(self.seed, 5, row)
    largest = masking.max_block(self.crops.global_px, self.patch_px)
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
      size = sum(masking.upper_bounds(*grouped.shape[1:], self.masks))
      pairs = [masking.collate(group, size) for group in grouped]
      batch['mask_index'] = np.stack([index for index, _ in pairs])
      batch['mask_weight'] = np.stack([weight for _, weight in pairs])
    return batch


def _name(source: sources_lib.Source, index: int) -> str:
  try:
    return source[index].name
  except OSError:
    return str(index)


class _Rows:
  """This process's rows of every batch, as a random-access sequence."""

  def __init__(self, plan: Plan, start_step: int, process_index: int,
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


def train_batches(
    sources: Sequence[sources_lib.Source], *, weights: Sequence[float],
    seed: int, start_step: int, batch_size: int, group_images: int,
    crops: crops_lib.Crops, masks: masking.Masks | None, patch_px: int,
    homogeneous: Sequence[tuple[sources_lib.Source, float]] = (),
    process_index: int = 0, process_count: int = 1, num_workers: int = 0,
    num_threads: int = 2, max_pixels: int = images.DEFAULT_MAX_PIXELS
) -> Iterator[dict]:
  """This process's share of every global batch from `start_step` on.

  Yields numpy dicts: global [b, v, y, x, c] and local uint8; label, row [b];
  bad [b] (replaced); mask [b, v, p] bool, mask_index and mask_weight [g, m]
  unless `masks` is None; problems, a list of what could not be read.

  Raises:
    ValueError: batch, processes and groups do not divide.
  """
  if batch_size % (process_count * group_images):
    raise ValueError(
        f'train.batch_size={batch_size} is not divisible by {process_count} '
        f'processes × train.group_images={group_images}: set it to a '
        f'multiple of {process_count * group_images}')
  first = len(sources)
  plan = Plan(
      sources=(*sources, *(source for source, _ in homogeneous)),
      weights=tuple(weights),
      homogeneous=tuple((first + i, probability) for i, (_, probability)
                        in enumerate(homogeneous)),
      seed=seed, batch_size=batch_size, group_images=group_images,
      crops=crops, masks=masks, patch_px=patch_px, max_pixels=max_pixels)
  rows = grain.MapDataset.source(
      _Rows(plan, start_step, process_index, process_count))
  # Two batches ahead; memory is bounded whatever the batch.
  ahead = max(2 * batch_size // process_count, num_threads)
  rows = rows.to_iter_dataset(grain.ReadOptions(
      num_threads=num_threads, prefetch_buffer_size=ahead))
  if num_workers:
    # Workers before batches: the order is the same for any number of them.
    rows = rows.mp_prefetch(grain.MultiprocessingOptions(
        num_workers=num_workers))
  return iter(rows.batch(
      batch_size // process_count, drop_remainder=True,
      batch_fn=plan.collate))


class _Centers:
  """Records in order, resized and centre-cropped."""

  def __init__(self, source, indices, resize_px, crop_px, max_pixels):
    self._source, self._indices = source, indices
    self._resize_px, self._crop_px = resize_px, crop_px
    self._max_pixels = max_pixels

  def __len__(self) -> int:
    return len(self._indices)

  def __getitem__(self, place: int) -> dict:
    index = int(self._indices[place])
    record = self._source[index]
    try:
      image = images.open_image(record.image, max_pixels=self._max_pixels)
      pixels = crops_lib.center_crop(
          image, resize_px=self._resize_px, crop_px=self._crop_px)
      valid = True
    except images.BadImage:
      pixels = np.zeros((self._crop_px, self._crop_px, 3), np.uint8)
      valid = False
    return {'image': pixels, 'label': np.int32(record.label),
            'index': np.int64(index), 'valid': np.bool_(valid)}


def eval_batches(
    source: sources_lib.Source, *, batch_size: int, resize_px: int,
    crop_px: int, indices: Sequence[int] | None = None,
    process_index: int = 0, process_count: int = 1, num_threads: int = 2,
    max_pixels: int = images.DEFAULT_MAX_PIXELS) -> Iterator[dict]:
  """Records in order, each once, as evaluation reads them.

  Every process yields the same number of batches of the same size: its rows
  of each global batch; padding and unreadable images have valid False.

  Args:
    source: records.
    batch_size: of the global batch.
    resize_px: short side before the centre crop.
    crop_px: side of the crop.
    indices: which records; None: all.
    process_index: of this process.
    process_count: processes.
    num_threads: decoding ahead.
    max_pixels: larger images are refused.

  Yields:
    image [b, y, x, c] uint8, label, index, valid [b].
  """
  chosen = np.arange(len(source)) if indices is None else np.asarray(indices)
  share = batch_size // process_count
  rows = _Centers(source, chosen, resize_px, crop_px, max_pixels)
  starts = range(0, len(chosen), batch_size)
  mine = [i for start in starts
          for i in range(start + process_index * share,
                         start + (process_index + 1) * share)]
  # A process without rows still takes part, with invalid ones.
  places = [i for i in mine if i < len(chosen)] or [0]
  ahead = iter(grain.MapDataset.source(places).map(
      rows.__getitem__).to_iter_dataset(grain.ReadOptions(
          num_threads=num_threads, prefetch_buffer_size=2 * share)))
  empty = {'image': np.zeros((crop_px, crop_px, 3), np.uint8),
           'label': np.int32(-1), 'index': np.int64(-1),
           'valid': np.bool_(False)}
  for start in range(0, len(mine), share):
    samples = [next(ahead) if i < len(chosen) else empty
               for i in mine[start:start + share]]
    yield {key: np.stack([s[key] for s in samples]) for key in empty}
