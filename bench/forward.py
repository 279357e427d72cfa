"""A ViT's forward pass on CPU against the same in PyTorch.

  python -m bench.forward [--models=s,b] [--batch=8] [--repeats=7]

float32, 224 pixels, the same random weights; transformers' Dinov2Model is the
peer. The features are compared before anything is timed; then the two take
turns. Prints one JSON line; ratio ≤ 1 means dinojax is as fast or faster.
"""

import argparse
import json
import statistics
import tempfile
import time

import numpy as np

from bench import peers

TOLERANCE = 1e-4


def sides(name: str, batch: int, threads: int):
  """(ours, theirs): functions of nothing that return [b, d] CLS features."""
  import jax
  import torch

  from dinojax.features import backbone as backbone_lib
  from dinojax.interop import reading
  from dinojax.interop import writing
  from dinojax.models import zoo
  from dinojax.parallel import mesh as mesh_lib
  config = zoo.vit_config(
      f'dinov2_vit{name}14', image_px=224, interpolate_offset=0.0,
      layerscale=1.0, token_std=0.02)
  mesh = mesh_lib.make(devices=jax.devices()[:1])
  with mesh_lib.activate(mesh):
    params = jax.device_get(
        reading.functional(config, mesh).init(jax.random.key(0)))
  weights = reading.Weights(config, params, {}, 'meta')
  torch.set_num_threads(threads)
  with tempfile.TemporaryDirectory() as folder:
    writing.write(folder, weights, 'hf')
    peer = peers.transformers().AutoModel.from_pretrained(
        folder, local_files_only=True, attn_implementation='sdpa').eval()
  model = backbone_lib.Backbone.of(weights)
  images = np.random.default_rng(0).normal(
      size=(batch, 224, 224, 3)).astype(np.float32)
  tensor = torch.from_numpy(
      np.ascontiguousarray(images.transpose(0, 3, 1, 2)))

  def ours():
    return np.asarray(model(images).cls)

  def theirs():
    with torch.inference_mode():
      return peer(tensor).last_hidden_state[:, 0].numpy()

  return ours, theirs


def measure(name: str, options) -> dict:
  """Times both sides of one model, in turns."""
  both = dict(zip(('jax', 'torch'), sides(
      name, options.batch, options.threads), strict=True))
  first = {side: run() for side, run in both.items()}
  gap = float(np.abs(first['jax'] - first['torch']).max())
  if not gap <= TOLERANCE:
    raise SystemExit(f'ViT-{name}: features differ by {gap:.1e}')
  times = {side: [] for side in both}
  for _ in range(options.repeats):
    for side, run in both.items():
      began = time.perf_counter()
      run()
      times[side].append(time.perf_counter() - began)
  seconds = {side: statistics.median(t) for side, t in times.items()}
  ratios = [a / b for a, b in zip(times['jax'], times['torch'], strict=True)]
  return {'gap': gap, 'ms': {s: round(1e3 * t) for s, t in seconds.items()},
          'ratio': round(statistics.median(ratios), 3),
          'ratio_range': [round(min(ratios), 3), round(max(ratios), 3)]}


def main():
  """Measures and prints."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('--models', default='s,b')
  parser.add_argument('--batch', type=int, default=8)
  parser.add_argument('--repeats', type=int, default=7)
  parser.add_argument('--threads', type=int, default=2)
  options = parser.parse_args()
  print(json.dumps({
      'bench': 'forward', 'batch': options.batch, 'image_px': 224,
      'dtype': 'float32', 'threads': options.threads,
      'models': {f'ViT-{name.upper()}/14': measure(name, options)
                 for name in options.models.split(',')}}))


if __name__ == '__main__':
  main()
