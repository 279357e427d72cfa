"""Batches are a function of (seed, step), whoever makes them."""

import collections
import dataclasses
import functools
import io
import multiprocessing
import os
import signal

import numpy as np
from PIL import Image
import pytest

from dinojax.core import errors
from dinojax.data import crops
from dinojax.data import images
from dinojax.data import masking
from dinojax.data import mixture
from dinojax.data import pipeline
from dinojax.data import record as record_lib


class Pictures:
  """Deterministic little PNGs; record i has label i."""

  def __init__(self, count, bad=(), spec='pictures:'):
    self.spec, self.classes = spec, ()
    self._count, self._bad = count, frozenset(bad)

  def __len__(self):
    return self._count

  def __getitem__(self, index):
    if index in self._bad:
      return record_lib.Record(b'garbage', index, f'{index}.png')
    rng = np.random.default_rng(index)
    pixels = rng.integers(0, 256, (24, 20, 3), dtype=np.uint8)
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, 'PNG')
    return record_lib.Record(out.getvalue(), index, f'{index}.png')


def plan(source=None, **changes):
  sources = source if isinstance(source, list) else [source or Pictures(20)]
  return pipeline.Plan(mixed=tuple(
      (pictures, 1.0) for pictures in sources), **dict(
      seed=3, batch_size=8, group_images=2,
      crops=crops.Crops(global_px=16, local_px=8, num_local=2),
      masks=masking.Masks(), patch_px=4) | changes)


def batches(source=None, count=1, skip=0, start_step=0, process_index=0,
            process_count=1, num_workers=0, **changes):
  iterator = pipeline.train_batches(
      plan(source, **changes), start_step, process_index=process_index,
      process_count=process_count, num_workers=num_workers, num_threads=1)
  out = [next(iterator) for _ in range(skip + count)]
  iterator.close()
  return out[skip:]


def assert_equal(a, b):
  assert a.keys() == b.keys()
  for key in a:
    np.testing.assert_array_equal(a[key], b[key], err_msg=key)


@pytest.mark.parametrize('processes', [2, 4])
def test_processes_divide_the_rows_of_every_batch(processes):
  whole = batches(count=8)
  parts = [batches(count=8, process_index=p, process_count=processes)
           for p in range(processes)]
  for step in (0, 7):
    for key in whole[step]:
      joined = sum((p[step][key] for p in parts), []) if (
          key == 'problems') else np.concatenate(
              [p[step][key] for p in parts])
      np.testing.assert_array_equal(joined, whole[step][key], err_msg=key)


def test_a_restart_continues():
  assert_equal(batches(start_step=5)[0], batches(skip=5)[0])


@pytest.mark.parametrize('workers', [
    2, pytest.param(3, marks=pytest.mark.slow)])
def test_workers_do_not_change_batches(workers):
  source = Pictures(20, bad={1, 5, 7})  # problems travel, too
  here = batches(source, count=3)
  assert any(b['problems'] for b in here)
  for a, b in zip(batches(source, count=3, num_workers=workers), here,
                  strict=True):
    assert_equal(a, b)


@pytest.mark.parametrize('number', [
    signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.slow)])
def test_workers_outlive_a_signal_to_the_whole_group(number):
  # The training process saves first, and needs rows until then.
  iterator = pipeline.train_batches(plan(), num_threads=1, num_workers=1)
  next(iterator)
  worker, = multiprocessing.active_children()
  os.kill(worker.pid, number)
  for _ in range(20):
    next(iterator)
  iterator.close()


def test_seeds_change_batches():
  a, b = batches(seed=1)[0], batches(seed=2)[0]
  assert (a['global'] != b['global']).any()


def test_an_epoch_has_every_record_once():
  labels = np.concatenate(
      [b['label'] for b in batches(Pictures(16), count=4)])
  assert sorted(labels[:16]) == sorted(labels[16:]) == list(range(16))
  assert (labels[:16] != labels[16:]).any()


def test_lists_of_masked_patches_have_one_length_and_point_at_them():
  size = masking.num_masked(4, 16, masking.Masks(), 32)
  for batch in batches(count=3):
    assert batch['mask_index'].shape == (4, size)
    masks = batch['mask'].reshape(4, -1)
    for mask, index, weight in zip(
        masks, batch['mask_index'], batch['mask_weight'], strict=True):
      assert size - 1 <= mask.sum() <= size
      np.testing.assert_array_equal(np.flatnonzero(mask), index[weight > 0])
      np.testing.assert_allclose(weight.sum(), 2, rtol=1e-6)  # masked rows


def test_masks_of_several_groups_share_out_the_ratios():
  spec = masking.Masks(spread_images=16)  # of two batches
  made = batches(count=6, masks=spec)
  # Groups of 2 images, of which 2 of 4 crops are masked.
  sizes = np.concatenate([b['mask'] for b in made]).sum(-1).reshape(24, 4)
  bounds = masking.upper_bounds(32, 16, spec)
  for deal in sizes.reshape(3, -1):
    assert sorted(deal) == [0] * 16 + bounds
  order = [tuple(np.sort(group)) for group in sizes]
  assert order[:8] != order[8:16] and sorted(order[:8]) == sorted(order[8:16])


def test_every_group_deals_its_own_mask_sizes():
  sizes = np.concatenate([b['mask'].sum(-1).reshape(4, -1)
                          for b in batches(count=4, masks=masking.Masks(
                              spread_images=2))])  # [g, r]
  assert len({tuple(sorted(group)) for group in sizes.tolist()}) == 1
  assert len({tuple(group) for group in sizes.tolist()}) > 4


def test_bad_images_are_replaced_and_reported_alike_everywhere():
  bad = {1, 5, 7, 11}
  whole = batches(Pictures(20, bad), count=4)
  seen = {p['name'] for b in whole for p in b['problems']}
  assert seen == {f'{i}.png' for i in bad}
  assert all(p['reason'] and p['source'] == 'pictures:'
             for b in whole for p in b['problems'])
  for batch in whole:
    assert batch['bad'].sum() == len(batch['problems'])
    assert not set(batch['label'].tolist()) & bad
  parts = [batches(Pictures(20, bad), count=4, process_index=p,
                   process_count=2) for p in range(2)]
  for step in range(4):
    np.testing.assert_array_equal(
        np.concatenate([p[step]['global'] for p in parts]),
        whole[step]['global'])


def test_a_source_of_nothing_but_bad_images_says_so():
  # Also from a worker: the user reads a sentence, not a stack trace.
  for workers in (0, 1):
    with pytest.raises(errors.UserError, match='cannot be decoded'):
      batches(Pictures(4, range(4)), num_workers=workers)


class Failing(Pictures):
  """A disk that fails for some records."""

  def __getitem__(self, index):
    if index in self._bad:
      raise OSError(5, 'Input/output error')
    return super().__getitem__(index)


def test_read_errors_are_replaced_and_reported():
  whole = batches(Failing(20, {2, 3}), count=4)
  problems = [p for b in whole for p in b['problems']]
  assert {p['name'] for p in problems} == {'2', '3'}
  assert all('Input/output error' in p['reason'] for p in problems)
  assert sum(b['bad'].sum() for b in whole) == len(problems)


def test_large_steps_do_not_overflow():
  step = 10**7  # times the batch exceeds 32 bits
  batch = batches(start_step=step, batch_size=1024, group_images=256,
                  process_count=4, process_index=3)[0]
  _, record = mixture.Mixture([20], [1.0], seed=3, batch_size=1024).locate(
      step * 1024 + 768)
  assert batch['row'][0] == 768 and batch['label'][0] == record


def test_undershooting_masks_are_padded_to_the_static_size():
  spec = masking.Masks(counts='undershooting', spread_images=1)
  size = sum(masking.upper_bounds(4, 16, spec))
  for batch in batches(count=3, masks=spec):
    assert batch['mask_index'].shape == (4, size)
    masks = batch['mask'].reshape(4, -1)
    for mask, index, weight in zip(
        masks, batch['mask_index'], batch['mask_weight'], strict=True):
      np.testing.assert_array_equal(
          np.flatnonzero(mask), index[weight > 0])


def test_groups_must_divide():
  with pytest.raises(ValueError, match='set it to a multiple of 12'):
    batches(group_images=3, process_count=4)


def test_weights_are_kept():
  mixed = mixture.Mixture(
      [100, 50], [3.0, 1.0], seed=0, batch_size=16)
  locations = [mixed.locate(row) for row in range(4096)]
  counts = collections.Counter(source for source, _ in locations)
  assert counts[0] == 3072 and counts[1] == 1024
  first = [record for source, record in locations if source == 1][:50]
  assert sorted(first) == list(range(50))  # an epoch of the second source
  assert [mixed.locate(row) for row in (7, 4000)] == [
      locations[7], locations[4000]]


def test_some_batches_come_from_one_source():
  mixed = mixture.Mixture(
      [100, 40], [1.0], homogeneous=[(1, 0.25)], seed=0, batch_size=8)
  steps = [{mixed.locate(8 * step + i)[0] for i in range(8)}
           for step in range(400)]
  assert all(len(sources) == 1 for sources in steps)
  share = np.mean([sources == {1} for sources in steps])
  assert abs(share - 0.25) < 4 * np.sqrt(0.25 * 0.75 / 400)


def test_random_boxes_follow_their_ranges():
  rng = np.random.default_rng(0)
  boxes = [crops.random_box((200, 120), (0.32, 1.0), (3 / 4, 4 / 3), rng)
           for _ in range(500)]
  for left, top, right, bottom in boxes:
    assert 0 <= left < right <= 200 and 0 <= top < bottom <= 120
    area = (right - left) * (bottom - top) / (200 * 120)
    assert 0.3 <= area <= 1.0
    assert 0.72 <= (right - left) / (bottom - top) <= 1.39
  long = crops.random_box((1000, 10), (0.9, 1.0), (3 / 4, 4 / 3), rng)
  assert long == (493, 0, 506, 10)  # centred, ratio cut to 4/3


def test_a_reduced_jpeg_gives_nearly_the_same_crops():
  rows, columns = np.mgrid[:800, :800]
  smooth = np.stack([127 + 120 * np.sin(rows / 40), rows * 0.3,
                     127 + 100 * np.cos(columns / 30)], -1)
  out = io.BytesIO()
  Image.fromarray(smooth.astype(np.uint8)).save(out, 'JPEG', quality=95)
  spec = crops.Crops(global_px=64, local_px=32)
  image = images.open_image(out.getvalue())
  got = crops.multi_crop(image, np.random.default_rng(0), spec)
  whole = images.open_image(out.getvalue())
  whole.decode = lambda scale: images.Image.decode(whole, 1)
  want = crops.multi_crop(whole, np.random.default_rng(0), spec)
  for kind in got:
    gap = np.abs(got[kind].astype(int) - want[kind].astype(int))
    assert gap.mean() < 1.5 and gap.max() < 30


def test_records_are_the_same_from_workers():
  crop = functools.partial(crops.center_crop, resize_px=16, crop_px=12)
  alone, workers = (list(pipeline.records_in_order(
      Pictures(10, {4}), crop, indices=[9, 4, 0, 7], num_workers=count))
      for count in (0, 1))
  assert [row['index'] for row in alone] == [9, 4, 0, 7]
  for a, b in zip(alone, workers, strict=True):
    assert_equal(a, b)


def test_records_that_cannot_be_read_have_a_reason():
  crop = functools.partial(crops.center_crop, resize_px=16, crop_px=12)
  for source in (Pictures(5, {2}), Failing(5, {2})):
    rows = list(pipeline.records_in_order(source, crop))
    assert [bool(row['problem']) for row in rows] == [
        False, False, True, False, False]
    assert rows[2]['name'] and not rows[2]['image'].size


def test_center_crop_rounds_as_torchvision():
  gradient = np.tile(np.arange(100, dtype=np.uint8)[None, :, None], (61, 1, 3))
  out = io.BytesIO()
  Image.fromarray(gradient).save(out, 'PNG')
  got = crops.center_crop(
      images.open_image(out.getvalue()), resize_px=61, crop_px=40)
  # 100 × 61 is not resized; the left border is round((100 − 40) / 2) = 30.
  np.testing.assert_array_equal(got[0, :, 0], np.arange(30, 70))


SIZES = ((16, 8, None, 0.25), (24, 16, 40, 0.0), (32, 8, None, 0.75))


def test_a_step_draws_its_sizes_for_all_rows():
  spec = crops.Crops(num_local=2, sizes=SIZES)
  drawn = [pipeline.size_at(spec, 3, step) for step in range(400)]
  assert set(drawn) == {0, 2}
  assert abs(drawn.count(2) / 400 - 0.75) < 0.08
  for step, batch in enumerate(batches(count=6, crops=spec)):
    side, local, _, _ = SIZES[drawn[step]]
    assert batch['global'].shape == (8, 2, side, side, 3)
    assert batch['local'].shape == (8, 2, local, local, 3)
    assert batch['mask'].shape == (8, 2, (side // 4) ** 2)
  assert_equal(batches(crops=spec, start_step=5)[0],
               batches(crops=spec, skip=5)[0])


def test_gram_crops_show_what_the_global_crops_show():
  spec = crops.Crops(global_px=16, local_px=8, num_local=2, gram_px=16)
  same, = batches(crops=spec)
  np.testing.assert_array_equal(same['gram'], same['global'])
  larger, = batches(crops=dataclasses.replace(spec, gram_px=32))
  assert larger['gram'].shape == (8, 2, 32, 32, 3)
  # The mean of a picture of noise says which rectangle it shows.
  means = [x.mean((2, 3)).astype(np.float32) for x in (
      larger['gram'], larger['global'])]
  assert np.corrcoef(*(m.reshape(-1) for m in means))[0, 1] > 0.9
  np.testing.assert_array_equal(larger['global'], same['global'])


def test_gram_crops_are_not_made_before_they_are_needed():
  spec = crops.Crops(global_px=16, local_px=8, num_local=2, gram_px=32)
  before, after = batches(crops=spec, count=2, gram_start=1)
  assert 'gram' not in before and 'gram' in after
