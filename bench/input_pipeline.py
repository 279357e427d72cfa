"""The host's share of the input pipeline against doing everything there.

  python -m bench.input_pipeline [--repeats=7]

Ours: decode, 2 × 224 + 8 × 98 crops, flips, uint8; the rest runs on device.
The peer makes the same ten crops as the references do, wholly on the host,
with torchvision: crop and resize, flip, colour jitter, grayscale, blur,
solarize, float32, normalised. It needs the extra `torch`.

One process, one thread, the two in turns, CPU time, so that other programs on
the machine matter little. Prints one JSON line; ratio > 1: ours is faster.
"""

import argparse
from collections.abc import Callable
import importlib.metadata
import io
import json
import math
import os
import statistics
import time

import numpy as np
from PIL import Image

from bench import peers
from dinojax.augment import photometric
from dinojax.data import crops
from dinojax.data import images
from dinojax.data import photos

SPEC = crops.Crops(local_px=98)
LONG_SIDE_PX, QUALITY = 500, 90
PHOTOGRAPHS = ('astronaut', 'chelsea', 'coffee', 'motorcycle_left', 'rocket',
               'retina', 'china', 'flower')
# (scale, size, blur probability, solarize probability) of each crop; the
# blur probabilities are those of the released models.
VIEWS = [(SPEC.global_scale, SPEC.global_px, 0.0, 0.0),
         (SPEC.global_scale, SPEC.global_px, 0.9, 0.2),
         *[(SPEC.local_scale, SPEC.local_px, 0.5, 0.0)] * SPEC.num_local]
PACKAGES = ('numpy', 'pillow', 'torch', 'torchvision')


def jpegs() -> list[bytes]:
  """The photographs, 500 pixels on the long side."""
  out = []
  for name in PHOTOGRAPHS:
    photo = Image.fromarray(photos.photograph(name))
    scale = LONG_SIDE_PX / max(photo.size)
    size = tuple(round(n * scale) for n in photo.size)
    file = io.BytesIO()
    photo.resize(size, Image.Resampling.LANCZOS).save(
        file, 'JPEG', quality=QUALITY)
    out.append(file.getvalue())
  return out


def ours(data: bytes, seed: int) -> dict[str, np.ndarray]:
  """What a worker does for an image."""
  return crops.multi_crop(
      images.open_image(data), np.random.default_rng(seed), SPEC)


def torchvision() -> Callable[[bytes, int], list]:
  """Makes ten crops, [c, y, x] float32 each, with torchvision."""
  t = peers.torchvision().transforms
  import torch
  torch.set_num_threads(1)
  bicubic = t.InterpolationMode.BICUBIC

  def view(scale, size, blur, solarize):
    return t.Compose([
        t.RandomResizedCrop(size, scale=scale, interpolation=bicubic),
        t.RandomHorizontalFlip(),
        t.RandomApply([t.ColorJitter(0.4, 0.4, 0.2, 0.1)], 0.8),
        t.RandomGrayscale(0.2),
        t.RandomApply([t.GaussianBlur(9, (0.1, 2.0))], blur),
        t.RandomSolarize(128, solarize), t.ToTensor(),
        t.Normalize(photometric.IMAGENET_MEAN, photometric.IMAGENET_STD)])

  chains = [view(*v) for v in VIEWS]

  def peer(data: bytes, seed: int) -> list:
    torch.manual_seed(seed)
    image = Image.open(io.BytesIO(data)).convert('RGB')
    return [chain(image) for chain in chains]

  return peer


def cpu_ms(function: Callable, files: list[bytes], repeat: int) -> float:
  """CPU time of an image."""
  start = time.process_time()
  for i, data in enumerate(files):
    function(data, repeat * len(files) + i)
  return (time.process_time() - start) * 1e3 / len(files)


def measure(peer: Callable, repeats: int) -> dict:
  """Times both, in turns; medians, and ratios of each turn."""
  files = jpegs()
  decode = lambda data, _: images.open_image(data).decode()
  sides = {'ours': ours, 'peer': peer, 'decode': decode}
  times = {name: [] for name in sides}
  for repeat in range(-1, repeats):  # the first warms up
    for name, function in sides.items():
      elapsed = cpu_ms(function, files, max(repeat, 0))
      if repeat >= 0:
        times[name].append(elapsed)
  middle = {name: statistics.median(t) for name, t in times.items()}
  ratios = [p / o for p, o in zip(times['peer'], times['ours'], strict=True)]
  return {
      'images_per_s_per_core': round(1e3 / middle['ours'], 1),
      'peer_images_per_s_per_core': round(1e3 / middle['peer'], 1),
      'ratio': round(statistics.median(ratios), 2),
      'ratio_range': [round(min(ratios), 2), round(max(ratios), 2)],
      'ms': round(middle['ours'], 2), 'peer_ms': round(middle['peer'], 2),
      'decode_ms': round(middle['decode'], 2), 'images': len(files),
      'jpeg_kb': round(math.fsum(map(len, files)) / len(files) / 1e3, 1)}


def main():
  """Measures and prints."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('--repeats', type=int, default=7)
  args = parser.parse_args()
  result = measure(torchvision(), args.repeats)
  print(json.dumps({
      'bench': 'input_pipeline', 'unit': 'images/s per core, CPU time',
      'peer': 'torchvision', **result, 'repeats': args.repeats,
      'versions': {p: importlib.metadata.version(p) for p in PACKAGES},
      'cpus': os.cpu_count()}))


if __name__ == '__main__':
  main()
