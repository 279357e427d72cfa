"""Maps of windows: one product an axis against windows that are added up.

  python -m bench.dense_maps

The peer is what published evaluations do, in PyTorch on the same threads:
logits of each window are resized to its pixels and added to a map, which is
divided by the number of windows, resized to the label's size, and reduced to
classes. Both get logits of patches of all windows of one image, ADE20K's
classes and sizes. Prints a JSON line: milliseconds of the fastest of
interleaved repeats, and their ratio.
"""

import json
import time

import numpy as np
import torch

from dinojax.evals import windows
from dinojax.kernels import resample

CLASSES, TOKENS, CROP, STRIDE = 150, 32, 512, 341
VIEW, LABEL = (512, 683), (512, 683)
REPEATS = 5


def ours(values, views):
  """Classes of every pixel."""
  tops, lefts = views.starts(VIEW)
  to_window = resample.linear_matrix(TOKENS, CROP)
  axes = [windows.matrix(n, CROP, first, to_window, m) for n, first, m in zip(
      VIEW, (tops, lefts), LABEL, strict=True)]
  grid = windows.side_by_side(values, len(tops))
  return np.asarray(windows.assembled(
      ((grid, *axes),), is_class=True,
      num_rows=windows.rows_at_once(*LABEL, CLASSES)))


def theirs(values, views):
  """The same by sums of windows."""
  total, count = torch.zeros(1, CLASSES, *VIEW), torch.zeros(1, 1, *VIEW)
  tops, lefts = views.starts(VIEW)
  places = [(top, left) for top in tops for left in lefts]
  for value, (top, left) in zip(values, places, strict=True):
    logits = torch.nn.functional.interpolate(
        value[None], (CROP, CROP), mode='bilinear', align_corners=False)
    rows, columns = slice(top, top + CROP), slice(left, left + CROP)
    total[:, :, rows, columns] += logits
    count[:, :, rows, columns] += 1
  out = torch.nn.functional.interpolate(
      total / count, LABEL, mode='bilinear', align_corners=False)
  return out.argmax(1)[0].numpy()


def main():
  """Prints the line."""
  views = windows.Windows(CROP, STRIDE)
  tops, lefts = views.starts(VIEW)
  values = np.random.default_rng(0).normal(size=(
      len(tops) * len(lefts), TOKENS, TOKENS, CLASSES)).astype(np.float32)
  nchw = torch.from_numpy(values.transpose(0, 3, 1, 2).copy())
  times = {'dinojax': [], 'torch': []}
  equal = (ours(values, views) == theirs(nchw, views)).mean()
  for _ in range(REPEATS):
    for name, call in (('dinojax', lambda: ours(values, views)),
                       ('torch', lambda: theirs(nchw, views))):
      began = time.perf_counter()
      call()
      times[name].append(1e3 * (time.perf_counter() - began))
  best = {name: min(each) for name, each in times.items()}
  print(json.dumps({
      'bench': 'dense_maps', 'windows': len(values), 'equal': float(equal),
      **{f'{name}_ms': round(value, 1) for name, value in best.items()},
      'ratio': round(best['dinojax'] / best['torch'], 3)}))


if __name__ == '__main__':
  main()
