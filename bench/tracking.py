"""Propagation of labels in a video of DAVIS against the v1 script's, on CPU.

  python -m bench.tracking [--frames 10] [--repeats 3] [--grid 60 106]

480p at patches of 8, features given: context of the first and seven frames,
radius 12, top 5, temperature 0.1, four labels. The peer does in PyTorch what
DINO's DAVIS script does: all products with every patch of the context, masked,
the largest five of each, weights, labels. Prints one JSON line: frames a second
with a full context, the best of interleaved repeats, and `ratio`, ours divided
by the peer's. `floor_s` is the time of the products within the tiles' windows.
"""

import argparse
import json
import os
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import torch

from dinojax.evals import propagation

_CONTEXT, _RADIUS, _TOP, _TEMPERATURE = 7, 12, 5, 0.1
_WIDTH, _LABELS = 384, 4
_RULE = propagation.Rule(_CONTEXT, _RADIUS, 'square', _TOP, _TEMPERATURE)


def main() -> int:
  """Measures, prints."""
  parser = argparse.ArgumentParser(
      description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
  parser.add_argument('--grid', type=int, nargs=2, default=[60, 106])
  parser.add_argument('--frames', type=int, default=2,
                      help='measured after the context is full')
  parser.add_argument('--repeats', type=int, default=3)
  options = parser.parse_args()
  features, labels = video(tuple(options.grid))
  ours = Ours(features, labels)
  peer = Peer(features, labels, ours.before)
  best = {'ours': np.inf, 'peer': np.inf}
  for _ in range(options.repeats):
    for name, tracker in (('ours', ours), ('peer', peer)):
      began = time.perf_counter()
      for _ in range(options.frames):
        tracker.frame()
      spent = (time.perf_counter() - began) / options.frames
      best[name] = min(best[name], spent)
  # The first frames of both have the same context.
  gap = np.abs(ours.first - peer.first).max()
  print(json.dumps({
      'bench': 'tracking', 'device': jax.devices()[0].device_kind,
      'cores': os.cpu_count(), 'torch_threads': torch.get_num_threads(),
      'grid': options.grid, 'ours_frames_per_s': round(1 / best['ours'], 3),
      'peer_frames_per_s': round(1 / best['peer'], 3),
      'ratio': round(best['peer'] / best['ours'], 2),
      'floor_s': round(floor(tuple(options.grid)), 3),
      'labels_gap': float(gap)}))
  return 0


def video(grid: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
  """Features [t, y, x, d] of a scene that moves, and labels [y, x, k]."""
  rng = np.random.default_rng(0)
  count = _CONTEXT + 2
  wide = rng.normal(size=(grid[0], grid[1] + count, _WIDTH))
  features = np.stack([wide[:, t:t + grid[1]] for t in range(count)])
  features += 0.5 * rng.normal(size=features.shape)
  labels = np.eye(_LABELS)[rng.integers(0, _LABELS, grid)]
  return features.astype(np.float32), labels.astype(np.float32)


class Ours:
  """The tracker of this package; a call of `frame` is a frame."""

  def __init__(self, features: np.ndarray, labels: np.ndarray):
    self._features = [jnp.asarray(frame) for frame in features]
    self._state = propagation.start(self._features[0], labels, _RULE)
    self.before = []  # labels of the frames of the full context
    for frame in self._features[1:-1]:
      self._state, shares = propagation.step(self._state, frame, _RULE)
      self.before.append(np.asarray(shares))

  def frame(self):
    self._state, shares = propagation.step(
        self._state, self._features[-1], _RULE)
    self.first = getattr(self, 'first', np.asarray(shares))


class Peer:
  """The DAVIS script of DINO in PyTorch, from its description."""

  def __init__(self, features: np.ndarray, labels: np.ndarray,
               before: list[np.ndarray]):
    count, rows, columns, width = features.shape
    self._grid = rows, columns
    unit = torch.nn.functional.normalize(
        torch.from_numpy(features.reshape(count, rows * columns, width)),
        dim=-1)
    self._target = unit[-1]
    y, x = np.divmod(np.arange(rows * columns), columns)
    near = np.maximum(np.abs(y[:, None] - y), np.abs(x[:, None] - x))
    self._near = torch.from_numpy((near <= _RADIUS).astype(np.float32))
    self._first = unit[0], torch.from_numpy(labels.reshape(-1, _LABELS))
    self._queue = [
        (frame, torch.from_numpy(shares.reshape(-1, _LABELS).copy()))
        for frame, shares in zip(unit[1:-1], before, strict=True)]

  def frame(self):
    shares = self._shares(self._target)
    self._queue = [*self._queue[1:], (self._target, shares)]
    self.first = getattr(
        self, 'first', shares.numpy().reshape(*self._grid, _LABELS))

  def _shares(self, target: torch.Tensor) -> torch.Tensor:
    known = [self._first, *self._queue]
    source = torch.stack([features for features, _ in known])  # [f, p, d]
    labels = torch.cat([shares for _, shares in known])
    affinity = torch.exp(torch.bmm(
        target.expand(len(known), *target.shape),
        source.transpose(1, 2)) / _TEMPERATURE)  # [f, target, source]
    affinity *= self._near
    affinity = affinity.transpose(1, 2).reshape(-1, len(target))
    least = torch.topk(affinity, _TOP, dim=0).values[-1]
    affinity[affinity < least] = 0
    affinity /= affinity.sum(0, keepdim=True)
    return affinity.T @ labels


def floor(grid: tuple[int, int]) -> float:
  """Seconds of the products of a frame alone."""
  tile = 16
  window = tile + 2 * _RADIUS
  tiles = -(-grid[0] // tile) * -(-grid[1] // tile)
  target = jnp.ones((tile * tile, _WIDTH))
  source = jnp.ones(((_CONTEXT + 1) * window * window, _WIDTH))
  product = jax.jit(lambda a, b: (a @ b.T).sum())
  product(target, source).block_until_ready()
  began = time.perf_counter()
  for _ in range(tiles):
    product(target, source).block_until_ready()
  return time.perf_counter() - began


if __name__ == '__main__':
  sys.exit(main())
