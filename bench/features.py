"""Features of a folder of photographs against transformers and a DataLoader.

  python -m bench.features [--models=b,s] [--images=64] [--repeats=5]

ViT-B/14 and ViT-S/14 of random weights, float32, 224 pixels: JPEG files are
decoded, resized to 256, cut, normalised, and their CLS tokens computed. The
peer is Dinov2Model of transformers behind a DataLoader of torch whose transform
is torchvision's, on the same cores. The features are compared first; then the
two take turns. `decode` and `forward` are our parts alone, which overlap.
Prints one JSON line; ratio > 1: dinojax is faster.
"""

import argparse
import io
import json
import pathlib
import tempfile
import time

import numpy as np
from PIL import Image

from bench import input_pipeline
from bench import peers

LONG_SIDE_PX, QUALITY, BATCH = 500, 90, 32
# Images are resized by the same rule, cut with the same rounding, decoded by
# the same library: what remains is float32 of two programs.
TOLERANCE = 5e-3


def photographs(folder: pathlib.Path, count: int):
  """Writes JPEG files of 500 pixels, cut differently from photographs."""
  rng = np.random.default_rng(0)
  whole = [Image.open(io.BytesIO(data)).convert('RGB')
           for data in input_pipeline.jpegs()]
  for i in range(count):
    image = whole[i % len(whole)]
    left, top = (int(rng.integers(0, 1 + n // 10)) for n in image.size)
    image.crop((left, top, *image.size)).resize(image.size).save(
        folder / f'{i:04}.jpg', quality=QUALITY)


def sides(name: str, folder: pathlib.Path, options):
  """(ours, theirs, parts): functions of nothing that return [b, d] features."""
  import jax
  import torch

  from dinojax.data import pipeline
  from dinojax.data import sources
  from dinojax.features import backbone as backbone_lib
  from dinojax.features import preprocessing
  from dinojax.features import spec
  from dinojax.features import stream
  from dinojax.interop import reading
  from dinojax.interop import writing
  from dinojax.models import zoo
  from dinojax.parallel import mesh as mesh_lib
  config = zoo.vit_config(
      f'dinov2_vit{name}14', image_px=224, interpolate_offset=0.0,
      layerscale=1.0, token_std=0.02)
  mesh = mesh_lib.make(devices=mesh_lib.one_device())
  with mesh_lib.activate(mesh):
    params = jax.device_get(
        reading.functional(config, mesh).init(jax.random.key(0)))
  weights = reading.Weights(config, params, {}, 'meta')
  torch.set_num_threads(options.threads)
  with tempfile.TemporaryDirectory() as exported:
    writing.write(exported, weights, 'hf')
    peer = peers.transformers().AutoModel.from_pretrained(
        exported, local_files_only=True, attn_implementation='sdpa').eval()
  model = backbone_lib.Backbone.of(weights, mesh)
  source = sources.open_source(f'folder:{folder}')
  sizes, reading_ = preprocessing.Preprocessing(), stream.Reading(
      BATCH, options.threads)

  def ours():
    batches = stream.read(model, {'cls': spec.FeatureSpec()}, source, sizes,
                          reading_, reduce=_cls)
    return stream.table(mesh, batches, lambda batch: {
        'cls': np.asarray(batch.local())})['cls']

  def decode():
    for _ in pipeline.records_in_order(
        source, sizes.prepare(config), indices=range(len(source)), ahead=64,
        num_threads=options.threads):
      pass

  images = np.zeros((BATCH, 224, 224, 3), np.uint8)

  def forward():
    for _ in range(-(-len(source) // BATCH)):
      jax.block_until_ready(model.run(
          images, {'cls': spec.FeatureSpec()}, pixels=True, reduce=_cls))

  return ours, _peer(peer, folder, model, options), decode, forward


def _cls(outputs):
  layer, = outputs['cls']
  return layer['cls']


class Photographs:
  """Files, opened and made ready by torchvision, in a worker process."""

  def __init__(self, files, mean, std):
    self._files, self._mean, self._std = files, mean, std
    self._transform = None  # made in the worker, as torchvision is

  def _made(self):
    t = peers.torchvision().transforms
    return t.Compose([
        t.Resize(256, interpolation=t.InterpolationMode.BICUBIC),
        t.CenterCrop(224), t.ToTensor(), t.Normalize(self._mean, self._std)])

  def __len__(self):
    return len(self._files)

  def __getitem__(self, index):
    self._transform = self._transform or self._made()
    return self._transform(Image.open(self._files[index]).convert('RGB'))


def _peer(peer, folder: pathlib.Path, model, options):
  """Transformers behind a DataLoader, whose workers stay."""
  import torch
  # Forks of a process that runs JAX may lock up.
  loader = torch.utils.data.DataLoader(
      Photographs(sorted(folder.iterdir()), model.mean, model.std),
      batch_size=BATCH, num_workers=options.workers, persistent_workers=True,
      multiprocessing_context='spawn')

  def theirs():
    with torch.inference_mode():
      return np.concatenate([
          peer(batch).last_hidden_state[:, 0].numpy() for batch in loader])

  return theirs


def measure(name: str, folder: pathlib.Path, options) -> dict:
  """Times of both sides and of our parts, in turns."""
  ours, theirs, decode, forward = sides(name, folder, options)
  both = {'jax': ours, 'torch': theirs, 'decode': decode, 'forward': forward}
  first = {side: both[side]() for side in ('jax', 'torch')}
  gap = float(np.abs(first['jax'] - first['torch']).max())
  if not gap <= TOLERANCE:
    raise SystemExit(f'ViT-{name}: features differ by {gap:.1e}')
  forward()
  times = {side: [] for side in both}
  for _ in range(options.repeats):
    for side, run in both.items():
      began = time.perf_counter()
      run()
      times[side].append(time.perf_counter() - began)
  least = {side: min(t) for side, t in times.items()}
  return {'gap': gap, 'images_s': {
      side: round(options.images / t, 2) for side, t in least.items()},
          'ratio': round(least['torch'] / least['jax'], 3)}


def main():
  """Measures and prints."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('--models', default='b,s')
  parser.add_argument('--images', type=int, default=64)
  parser.add_argument('--repeats', type=int, default=5)
  parser.add_argument('--threads', type=int, default=2)
  parser.add_argument('--workers', type=int, default=2, help='of DataLoader')
  options = parser.parse_args()
  with tempfile.TemporaryDirectory() as root:
    folder = pathlib.Path(root)
    photographs(folder, options.images)
    print(json.dumps({
        'bench': 'features', 'image_px': 224, 'dtype': 'float32',
        'images': options.images, 'threads': options.threads,
        'models': {f'ViT-{name.upper()}/14': measure(name, folder, options)
                   for name in options.models.split(',')}}))


if __name__ == '__main__':
  main()
