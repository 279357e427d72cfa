"""An EoMT's forward pass on CPU against the same in PyTorch.

  python -m bench.eomt [--model=b] [--batch=2] [--parts=open,masked]

float32, 256 pixels, the same random weights, 200 queries, 133 classes;
transformers' EomtForUniversalSegmentation is the peer. `open` has masked
attention off, as published models run; `masked` has it on, with a prediction
before each block. Predictions are compared before anything is timed. Prints
one JSON line; a ratio ≤ 1 means dinojax is as fast, or takes as little memory:
from the start of a process on, its compiler included, and while it runs.
"""

import argparse
import json
import tempfile

import numpy as np

from bench import peers
from bench import turns

TOLERANCE = 1e-4
PX, QUERIES, CLASSES = 256, 200, 133
# Width, depth, heads, and blocks with queries.
MODELS = {'s': (384, 12, 6, 3), 'b': (768, 12, 12, 3), 'l': (1024, 24, 16, 4)}


def save(folder: str, name: str, masked: bool):
  """A random model, as a folder of transformers."""
  import torch
  width, depth, heads, blocks = MODELS[name]
  package = peers.transformers()
  torch.manual_seed(0)
  model = package.EomtForUniversalSegmentation(package.EomtConfig(
      hidden_size=width, num_hidden_layers=depth, num_attention_heads=heads,
      num_blocks=blocks, num_queries=QUERIES, num_labels=CLASSES,
      image_size=PX, layerscale_value=0.1))
  model.attn_mask_probs.fill_(float(masked))
  model.save_pretrained(folder)


def make(side: str, options):
  """A side: the last classes of the queries, of the same images."""
  images = np.random.default_rng(0).normal(
      size=(options.batch, PX, PX, 3)).astype(np.float32)
  return (ours if side == 'jax' else theirs)(images, options)


def ours(images, options):
  """The backbone's first blocks and the head, as one program."""
  import functools

  import jax

  from dinojax.evals import published_heads
  from dinojax.features import spec
  from dinojax.parallel import mesh as mesh_lib
  from dinojax.runs import models
  model = models.load(options.folder)
  head = published_heads.read(options.folder, model).on(model)
  task, mesh = head.task, model.mesh

  def forward(params, head, images):
    features = model.net.apply(params, images, functools.partial(
        spec.compute, specs=dict(task.choices)))
    return task.outputs({'params': head, 'stats': {}}, features['patches'],
                        {}, None)[0][-1]

  program = jax.jit(forward, compiler_options=mesh_lib.compiler_options(mesh))
  params = jax.device_put(head.params, jax.NamedSharding(mesh, jax.P()))
  del head
  rows = jax.device_put(images, jax.NamedSharding(mesh, mesh_lib.ROWS))

  def run():
    with mesh_lib.activate(mesh):
      out = jax.block_until_ready(program(model.params, params, rows))
    return np.asarray(out.classes)

  return run


def theirs(images, options):
  """The whole model."""
  import torch
  torch.set_num_threads(options.threads)
  model = peers.transformers().EomtForUniversalSegmentation.from_pretrained(
      options.folder, attn_implementation='sdpa').eval()
  pixels = torch.from_numpy(
      np.ascontiguousarray(images.transpose(0, 3, 1, 2)))

  def run():
    with torch.inference_mode():
      return model(pixels).class_queries_logits.numpy()

  return run


def main():
  """Measures and prints."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('--model', default='b', choices=MODELS)
  parser.add_argument('--batch', type=int, default=2)
  parser.add_argument('--repeats', type=int, default=7)
  parser.add_argument('--threads', type=int, default=2)
  parser.add_argument('--parts', default='open,masked')
  options, out = parser.parse_args(), {}
  for part in options.parts.split(','):
    with tempfile.TemporaryDirectory() as options.folder:
      save(options.folder, options.model, part == 'masked')
      out[part] = turns.measure(make, options, repeats=options.repeats,
                                tolerance=TOLERANCE)
  print(json.dumps({
      'bench': 'eomt', 'model': f'ViT-{options.model.upper()}/16',
      'batch': options.batch, 'image_px': PX, 'dtype': 'float32',
      'threads': options.threads, 'parts': out}))


if __name__ == '__main__':
  main()
