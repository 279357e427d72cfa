"""Masks: exact numbers, the references' shapes, and their bookkeeping."""

import math
import random

import numpy as np
import pytest

from dinojax.data import masking
from tests import golden


class PythonRandom:
  """The references draw from Python's random module."""

  def __init__(self, seed):
    self._random = random.Random(seed)

  def uniform(self, low, high):
    return self._random.uniform(low, high)

  def randint(self, low, high):
    return self._random.randint(low, high)


def exact_call(version):
  case = golden.load('masking_generator')
  call = next(c for c in case.meta['calls']
              if c['id'] == f'{version}/exact_masks')
  return case, call


@pytest.mark.parametrize('version', ['v2', 'v3'])
def test_seeded_masks_equal_reference(version):
  case, call = exact_call(version)
  rng = PythonRandom(call['random_seed'])
  fill_rng = np.random.RandomState(call['numpy_seed'])
  masks = []
  for count in call['counts']:
    mask = masking.blocks(
        rng, tuple(call['input_size']), count, call['max_num_patches'])
    masks.append(masking.fill(mask, count, fill_rng)
                 if version == 'v3' else mask)
  expected = case.outputs[f'{version}/exact_masks']
  # No mask of these draws needs topping up, so all cells are equal.
  np.testing.assert_array_equal(masks, expected)


@pytest.mark.parametrize('name', ['16x16_count77', '14x14_count58'])
def test_mask_statistics_equal_reference(name):
  case = golden.load('masking_generator')
  call = next(c for c in case.meta['calls'] if c['id'] == f'v2/{name}')
  rng = masking.NumpyRng(np.random.default_rng(0))
  masks = np.array([masking.blocks(
      rng, tuple(call['input_size']), call['num_masking_patches'],
      call['max_num_patches']) for _ in range(1000)])
  marginal = case.outputs[f'v2/{name}/marginal']
  # Standard error of a marginal: 0.016 here, 0.011 there; 256 of them.
  assert np.abs(masks.mean(0) - marginal).max() < 4.5 * 0.02
  mean, std, *_ = case.outputs[f'v2/{name}/count_mean_std_min_max']
  counts = masks.sum((1, 2))
  assert abs(counts.mean() - mean) < 6 * max(std, 0.1) / np.sqrt(1000)
  together = [np.mean(masks[:, :, 1:] & masks[:, :, :-1]),
              np.mean(masks[:, 1:] & masks[:, :-1])]
  np.testing.assert_allclose(
      together, case.outputs[f'v2/{name}/adjacent_h_v'], atol=0.01)


@pytest.mark.parametrize('call_id', ['v2', 'v3', 'v3_shift'])
def test_collate_equals_reference(call_id):
  case = golden.load('collate')
  call = next(c for c in case.meta['calls'] if c['id'] == call_id)
  given = case.inputs[f'{call_id}/given_masks_in_call_order']
  if call_id == 'v3_shift':
    shifts = case.inputs['v3_shift/shifts']
    given = given.copy()
    for i, shift in enumerate(shifts):
      given[i] = np.roll(given[i], tuple(shift), (0, 1))
  order = case.inputs[f'{call_id}/shuffle_order']
  masks = given[order].reshape(len(order), -1)
  case.check(f'{call_id}/collated_masks', masks)
  spec = masking.Masks(
      probability=call['mask_probability'],
      ratio=tuple(call['mask_ratio_tuple']))
  bound = sum(masking.upper_bounds(len(masks), call['n_tokens'], spec))
  case.check(f'{call_id}/upperbound', bound)
  index, weight = masking.collate(masks, bound)
  count = int(case.outputs[f'{call_id}/n_masked_patches'][0])
  case.check(f'{call_id}/mask_indices_list', index[:count])
  case.check(f'{call_id}/masks_weight', weight[:count])
  assert not weight[count:].any()


@pytest.mark.parametrize('images, patches, total', [
    (64, 196, 3771), (32, 196, 1906), (16, 256, 1274), (24, 256, 1883),
    (40, 256, 3104), (8, 1024, 2659), (8, 2304, 5987), (4, 196, 273),
    (2, 196, 156), (1, 196, 98)])
def test_masked_patches_of_a_group_are_the_published_constants(
    images, patches, total):
  bounds = masking.upper_bounds(2 * images, patches, masking.Masks())
  assert sum(bounds) == total


def test_collate_pads_a_part_of_a_group_as_the_reference():
  case = golden.load('collate')
  masks = case.outputs['v3_subset2/collated_masks']
  bound = int(case.outputs['v3_subset2/upperbound'])
  index, weight = masking.collate(masks, bound)
  count = int(case.outputs['v3_subset2/n_masked_patches'][0])
  assert count < bound == len(index) == len(weight)
  case.check('v3_subset2/mask_indices_list', index[:count])
  case.check('v3_subset2/masks_weight', weight[:count])
  assert not index[count:].any() and not weight[count:].any()


class Scripted:
  """Draws given numbers; after them, a block that finds no room."""

  def __init__(self, *numbers):
    self._numbers = list(numbers)

  def uniform(self, low, high):
    return self._numbers.pop(0) if self._numbers else low

  def randint(self, low, high):
    return self._numbers.pop(0) if self._numbers else low


def test_a_block_is_where_its_draws_say():
  # Area 6, aspect exp(0): 2 × 2 after rounding, at row 1, column 3.
  mask = masking.blocks(Scripted(6.0, 0.0, 1, 3), (6, 6), 4, 18)
  assert np.argwhere(mask).tolist() == [[1, 3], [1, 4], [2, 3], [2, 4]]


@pytest.mark.parametrize('aspect', [2.0, 0.5])
def test_a_block_never_spans_the_image(aspect):
  # 6 × 3 or 3 × 6 is refused; then 1 × 4 is found, and nothing after it.
  rng = Scripted(18.0, math.log(aspect))
  mask = masking.blocks(rng, (6, 6), 18, 18)
  assert np.argwhere(mask).tolist() == [[0, 0], [0, 1], [0, 2], [0, 3]]


def test_circular_shifts_keep_the_count_and_reach_the_border():
  spec = masking.Masks(circular_shift=True)
  rng = np.random.default_rng(0)
  masks = np.array([masking.row_mask(rng, (8, 8), 12, 32, spec)
                    for _ in range(400)])
  assert (masks.sum((1, 2)) == 12).all()
  # Shifted masks are uniform: 12/64, with a standard error of 0.02.
  assert np.abs(masks.mean(0) - 12 / 64).max() < 4.5 * 0.02


def test_every_row_gets_exactly_its_count():
  spec = masking.Masks()
  rng = np.random.default_rng(0)
  counts = masking.row_counts(16, 64, spec, rng)
  assert sorted(counts)[:8] == [0] * 8
  for count in counts:
    mask = masking.row_mask(rng, (8, 8), int(count), 32, spec)
    assert mask.sum() == count


def test_undershooting_masks_fit_their_padding():
  spec = masking.Masks(counts='undershooting')
  rng = np.random.default_rng(0)
  bound = sum(masking.upper_bounds(16, 64, spec))
  for _ in range(20):
    counts = masking.row_counts(16, 64, spec, rng)
    assert counts.sum() <= bound


@pytest.mark.parametrize('size, patch, expected', [
    (224, 16, 98), (224, 14, 128), (256, 16, 128), (512, 16, 512),
    (768, 16, 1152)])
def test_largest_block(size, patch, expected):
  assert masking.max_block(size, patch) == expected
