"""Masks and their bookkeeping."""

import random

import jax
import numpy as np

from dinojax.data import masking
from dinojax.train import step
from tests import golden


class PythonRandom:
  """The references draw from Python's random module."""

  def __init__(self, seed):
    self._random = random.Random(seed)

  def uniform(self, low, high):
    return self._random.uniform(low, high)

  def randint(self, low, high):
    return self._random.randint(low, high)


@golden.kind('masking_generator')
def masking_generator(case):
  out = {}
  for call in case.calls:
    name, grid = call['id'], tuple(call['input_size'])
    tops_up, largest = name.startswith('v3'), call['max_num_patches']
    if 'random_seed' in call:
      rng, fill = PythonRandom(call['random_seed']), np.random.RandomState(
          call['numpy_seed'])
      out[name] = np.array([
          one_mask(rng, fill, grid, n, largest, tops_up)
          for n in call['counts']])
      continue
    wanted, draws = call['num_masking_patches'], call['draws']
    rng = np.random.default_rng(0)
    masks = np.array([one_mask(
        masking.NumpyRng(rng), rng, grid, wanted, largest, tops_up)
                      for _ in range(draws)])
    out |= statistics(name, masks, case.outputs)
  return out


def one_mask(rng, fill, grid, count, largest, tops_up):
  mask = masking.blocks(rng, grid, count, largest)
  return masking.fill(mask, count, fill) if tops_up else mask


def statistics(name, masks, outputs):
  """Statistics of random masks, if they are those of one distribution."""
  draws, counts = len(masks), masks.sum((1, 2))
  two = (2 / draws) ** 0.5  # times a standard deviation: of a difference
  together = [np.mean(masks[:, :, 1:] & masks[:, :, :-1]),
              np.mean(masks[:, 1:] & masks[:, :-1])]
  out = {
      f'{name}/marginal': golden.Within(masks.mean(0), atol=5 * 0.5 * two),
      f'{name}/adjacent_h_v': golden.Within(
          np.float32(together), atol=0.5 * two)}
  key = f'{name}/count_mean_std_min_max'
  if key in outputs:
    out[key] = same_moments(counts, outputs[key])
  key = f'{name}/count_hist'
  if key in outputs:
    out[key] = same_distribution(
        np.bincount(counts, minlength=masks[0].size + 1), outputs[key])
  return out


def same_moments(counts, theirs):
  """`theirs` (mean, deviation, least, most), if ours are such counts too.

  An extreme is one draw, and says little: of a rare event another sample may
  have none, or three. Ours may lie beyond theirs as often as chance has it.
  """
  mean, deviation, least, most = map(float, theirs)
  draws, spread = len(counts), max(counts.std(), deviation, 0.05)
  two = (2 / draws) ** 0.5
  # A deviation is as uncertain as the fourth moment says: shortfalls are rare
  # and large.
  fourth = np.mean((counts - counts.mean()) ** 4) / max(counts.var(), 1e-9)
  assert abs(counts.mean() - mean) <= 5 * two * spread, (counts.mean(), mean)
  assert abs(counts.std() - deviation) <= 5 * two * max(
      spread, fourth ** 0.5), (counts.std(), deviation)
  # Each further one lies beyond theirs with a probability of one half.
  beyond = (counts < least).sum(), (counts > most).sum()
  assert max(beyond) < 20, (beyond, least, most)
  return theirs


def same_distribution(ours, theirs):
  """`theirs`, if the two histograms' largest distance is that of chance."""
  size = max(len(ours), len(theirs))
  share = lambda x: np.cumsum(np.pad(x, (0, size - len(x)))) / x.sum()
  distance = np.abs(share(ours) - share(theirs)).max()
  # Kolmogorov and Smirnov: exceeded once in a million.
  bound = 2.7 * (1 / ours.sum() + 1 / theirs.sum()) ** 0.5
  assert distance < bound, (distance, bound)
  return theirs


@golden.kind('collate')
def collate(case):
  out = {}
  for call in case.calls:
    name = call['id']
    given = np.array(case.inputs[f'{name}/given_masks_in_call_order'])
    for i, shift in enumerate(case.inputs.get(f'{name}/shifts', ())):
      given[i] = np.roll(given[i], tuple(shift), (0, 1))
    order = case.inputs[f'{name}/shuffle_order']
    masks = given[order].reshape(len(order), -1)
    spec = masking.Masks(
        probability=call['mask_probability'],
        ratio=tuple(call['mask_ratio_tuple']))
    assert tuple(call['grid']) == given.shape[1:]
    bounds = masking.upper_bounds(len(masks), call['n_tokens'], spec)
    out[f'{name}/requested_counts'] = requested(
        case, call, spec, bounds, len(masks))
    batch = {'mask': masks.reshape(2, call['batch'], -1).swapaxes(0, 1)}
    for ours, theirs in (('global', 'global_crops'),
                         ('local', 'local_crops'),
                         ('gram', 'gram_teacher_crops')):
      batch[ours] = case.inputs[theirs]
    out |= collated(name, batch, sum(bounds))
    half = {key: value[:call['batch'] // 2] for key, value in batch.items()}
    out |= collated(f'{name}_subset2', half, sum(bounds))
  return out


def requested(case, call, spec, bounds, rows):
  """Mask sizes in the order of the calls: the masked rows come first."""
  if not call['id'].startswith('v2'):
    return np.pad(bounds, (0, rows - len(bounds))).astype(np.int32)
  # DINOv2 draws them between two edges each; its draws are not ours.
  lower = [int(call['n_tokens'] * edge) for edge in masking.edges(rows, spec)]
  counts = np.zeros(rows, np.int32)
  want = case.outputs[f'{call["id"]}/requested_counts']
  counts[:len(bounds)] = np.clip(want[:len(bounds)], lower[:-1], bounds)
  return counts


def collated(name, batch, size):
  """Our rows go image by image, the references' crop by crop."""
  views = {'global': batch['global'].shape[1], 'local': batch['local'].shape[1],
           'gram': batch['gram'].shape[1]}
  batch = {key: value if key == 'mask' else value.transpose(0, 1, 3, 4, 2)
           for key, value in batch.items()}
  rows = step.network_rows(
      batch | {'mask_index': None, 'mask_weight': None})
  theirs = lambda x, v: np.asarray(x).reshape(-1, v, *x.shape[1:]).swapaxes(
      0, 1).reshape(x.shape)
  crops = rows['crops'] | {'gram': rows['gram']}
  crops = jax.tree.map(lambda x: x.transpose(0, 3, 1, 2), crops)
  masks = theirs(rows['masks']['global'], views['global'])
  index, weight = masking.collate(masks, size)
  count = int(masks.sum())
  assert not index[count:].any() and not weight[count:].any()
  keys = {'global': 'global_crops', 'local': 'local_crops',
          'gram': 'gram_teacher_crops'}
  return {f'{name}/collated_masks': masks, f'{name}/upperbound': size,
          f'{name}/mask_indices_list': index[:count],
          f'{name}/masks_weight': weight[:count],
          f'{name}/n_masked_patches': [count]} | {
              f'{name}/collated_{key}': theirs(crops[kind], views[kind])
              for kind, key in keys.items()}
