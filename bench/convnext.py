"""A ConvNeXt's forward and backward pass on CPU against the same in PyTorch.

  python -m bench.convnext [--model=t] [--batch=2] [--px=224]

float32, the same random weights; transformers' DINOv3ConvNextModel is the peer.
The loss is the sum of the squares of CLS; CLS and the length of the gradient of
every weight are compared before anything is timed. Prints one JSON line; a
ratio ≤ 1 means dinojax is as fast, or takes as little memory.
"""

import argparse
import json
import tempfile

import numpy as np

from bench import peers
from bench import turns

TOLERANCE = 1e-3
MODELS = {'t': ((3, 3, 9, 3), (96, 192, 384, 768)),
          's': ((3, 3, 27, 3), (96, 192, 384, 768))}


def save(folder: str, name: str, px: int):
  """A random model, as a folder of transformers."""
  import torch
  depths, widths = MODELS[name]
  package = peers.transformers()
  torch.manual_seed(0)
  package.DINOv3ConvNextModel(package.DINOv3ConvNextConfig(
      depths=list(depths), hidden_sizes=list(widths), image_size=px,
      layer_scale_init_value=0.1)).save_pretrained(folder)


def make(side: str, options):
  """A side: CLS, and the length of the whole gradient."""
  images = np.random.default_rng(0).normal(
      size=(options.batch, options.px, options.px, 3)).astype(np.float32)
  return (ours if side == 'jax' else theirs)(images, options)


def ours(images, options):
  """The backbone as it is loaded, its blocks in a loop."""
  import functools

  import jax
  import jax.numpy as jnp

  from dinojax.features import spec
  from dinojax.parallel import mesh as mesh_lib
  from dinojax.runs import models
  model = models.load(options.folder)
  wanted = {'all': spec.FeatureSpec(('cls',))}

  def loss(params, images):
    (layer,) = model.net.apply(params, images, functools.partial(
        spec.compute, specs=wanted))['all']
    return jnp.sum(jnp.square(layer['cls'])), layer['cls']

  @functools.partial(jax.jit, compiler_options=mesh_lib.compiler_options(
      model.mesh))
  def program(params, images):
    change, cls = jax.grad(loss, has_aux=True)(params, images)
    squares = [jnp.sum(jnp.square(x)) for x in jax.tree.leaves(change)]
    return cls, jnp.sqrt(sum(squares))

  rows = jax.device_put(images, jax.NamedSharding(model.mesh, mesh_lib.ROWS))

  def run():
    with mesh_lib.activate(model.mesh):
      return [np.asarray(x) for x in program(model.params, rows)]

  return run


def theirs(images, options):
  """The whole model."""
  import torch
  torch.set_num_threads(options.threads)
  model = peers.transformers().DINOv3ConvNextModel.from_pretrained(
      options.folder)
  pixels = torch.from_numpy(
      np.ascontiguousarray(images.transpose(0, 3, 1, 2)))

  def run():
    model.zero_grad()
    cls = model(pixels).pooler_output
    cls.square().sum().backward()
    squares = sum(p.grad.square().sum() for p in model.parameters()
                  if p.grad is not None)
    return [cls.detach().numpy(), squares.sqrt().numpy()]

  return run


def main():
  """Measures and prints."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('--model', default='t', choices=MODELS)
  parser.add_argument('--batch', type=int, default=2)
  parser.add_argument('--px', type=int, default=224)
  parser.add_argument('--repeats', type=int, default=5)
  parser.add_argument('--threads', type=int, default=2)
  options = parser.parse_args()
  with tempfile.TemporaryDirectory() as options.folder:
    save(options.folder, options.model, options.px)
    out = turns.measure(make, options, repeats=options.repeats,
                        tolerance=TOLERANCE)
  print(json.dumps({
      'bench': 'convnext', 'model': f'ConvNeXt-{options.model.upper()}',
      'batch': options.batch, 'image_px': options.px, 'dtype': 'float32',
      'threads': options.threads} | out))


if __name__ == '__main__':
  main()
