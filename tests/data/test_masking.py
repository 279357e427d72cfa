"""Masks: exact numbers, known blocks, and their bookkeeping."""

import math

import numpy as np
import pytest

from dinojax.data import masking


@pytest.mark.parametrize('images, patches, total', [
    (64, 196, 3771), (32, 196, 1906), (16, 256, 1274), (24, 256, 1883),
    (40, 256, 3104), (8, 1024, 2659), (8, 2304, 5987), (4, 196, 273),
    (2, 196, 156), (1, 196, 98)])
def test_masked_patches_of_a_group_are_the_published_constants(
    images, patches, total):
  bounds = masking.upper_bounds(2 * images, patches, masking.Masks())
  assert sum(bounds) == total


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


def dealt(group, spec, patches=196):
  """Mask sizes of all rows over which the ratios are spread, by group."""
  groups = masking.num_groups(group, spec)
  rng = np.random.default_rng(0)
  return np.array([
      masking.row_counts(2 * group, patches, spec, rng, groups=groups, hand=i)
      for i in range(groups)])


@pytest.mark.parametrize('group', [1, 2, 3, 4, 7, 15, 16, 48, 64, 128])
def test_what_is_hidden_does_not_depend_on_the_group(group):
  sizes = dealt(group, masking.Masks())
  # All bins, each once: half of the rows, from a tenth to half of the patches.
  bounds = masking.upper_bounds(sizes.size, 196, masking.Masks())
  assert sorted(sizes.reshape(-1)) == [0] * len(bounds) + bounds
  # 64 images a rank of the references: 3771 patches.
  assert abs(sizes.mean() * 128 / 3771 - 1) < 0.006
  # One length fits all groups, nearly without padding.
  size = masking.num_masked(
      2 * group, 196, masking.Masks(), masking.num_groups(
          group, masking.Masks()))
  assert sizes.sum(1).max() == size
  if group > 1:
    assert sizes.sum(1).mean() > 0.99 * size
    assert (np.count_nonzero(sizes, axis=1) == group).all()


def test_drawn_ratios_are_uniform_whatever_the_group():
  spec = masking.Masks(counts='undershooting')
  samples = [np.sort(np.concatenate([
      dealt(group, spec, 10_000).reshape(-1) for _ in range(8)]))
             for group in (3, 16)]
  for sizes in samples:
    sizes = sizes[sizes > 0] / 10_000
    uniform = np.linspace(0.1, 0.5, len(sizes))
    # Within a bin of one of them, 1/64 of the range.
    assert np.abs(sizes - uniform).max() < 0.4 / 64


def test_probabilities_that_do_not_divide_a_group_are_kept():
  spec = masking.Masks(probability=0.3)
  for group in (1, 2, 3, 4):
    share = np.count_nonzero(dealt(group, spec)) / dealt(group, spec).size
    assert abs(share - 0.3) < 0.005


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
