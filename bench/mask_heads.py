"""Heads of queries on CPU against those of transformers: time and memory.

  python -m bench.mask_heads [--parts attention mask2former] [--repeats=5]

`attention`: multi-scale deformable attention, forward and backward, of the
three maps of a pixel decoder. `mask2former`: pixel decoder and queries,
forward, from the same four maps of an image. Sizes are those of Mask2Former:
width 256, 8 heads, 6 and 9 layers, 100 queries.

Both sides have the same weights, inputs and cores, each in a process of its
own; what they give is compared before anything is timed, and then they take
turns, see bench.turns. Prints a JSON line for each part.
"""

import argparse
import json
import os
import re
import tempfile

import numpy as np

from bench import peers
from bench import turns

WIDTH, HEADS, FFN, LAYERS, QUERIES, CLASSES = 256, 8, 1024, (6, 9), 100, 150
LEVELS, POINTS = 3, 4
CLOSE = 1e-3  # of the largest value


def sizes_of(options) -> list[tuple[int, int]]:
  """Rows and columns of the three coarser maps, the coarsest first."""
  return [(options.image_px // stride,) * 2 for stride in (32, 16, 8)]


def normal(seed: int, *shape: int) -> np.ndarray:
  """Random values that both sides get."""
  return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def drawn(init) -> dict:
  """Parameters by their shapes: what draws them as a start is not measured."""
  import jax

  from dinojax.core import tree
  return tree.map_with_name(
      lambda name, x: (0.05 * normal(x.size, *x.shape) + name.endswith(
          'scale')).astype(np.float32), jax.eval_shape(init))


class AttentionJax:
  """Deformable attention of ours."""

  def __init__(self, options):
    import jax
    import jax.numpy as jnp

    from dinojax.interop import translate
    from dinojax.interop.heads import mask2former as tables
    from dinojax.models.dense import deformable
    from dinojax.parallel import mesh as mesh_lib
    config = deformable.Config(WIDTH, HEADS, LEVELS, POINTS)
    params = drawn(lambda: deformable.init(jax.random.key(0), config))
    self.weights = translate.to_theirs(
        {'params': params}, tables.of_attention('params', ''))
    sizes = sizes_of(options)
    places = deformable.centers(sizes)[None, :, None].repeat(LEVELS, axis=2)

    def run(params, queries, maps, cotangent):
      return jnp.sum(cotangent * deformable.apply(
          params, config, queries, places, maps, sizes))

    self._given = jax.device_put((params, *attention_inputs(options)))
    self._run = jax.jit(
        jax.value_and_grad(run, argnums=(0, 1, 2)),
        compiler_options=mesh_lib.compiler_options(
            mesh_lib.make(devices=mesh_lib.one_device())))
    self._ready = jax.block_until_ready

  def __call__(self) -> list[np.ndarray]:
    """The sum, and gradients of queries and maps."""
    value, (_, *grads) = self._ready(self._run(*self._given))
    return [np.asarray(x) for x in (value, *grads)]


def attention_inputs(options) -> list[np.ndarray]:
  """Queries, maps and cotangent."""
  count = sum(y * x for y, x in sizes_of(options))
  return [normal(seed, options.batch, count, WIDTH) for seed in (1, 2, 3)]


class AttentionTorch:
  """Deformable attention of transformers."""

  def __init__(self, options, weights: dict):
    torch, modules = torch_modules(options)
    attention = (
        modules.Mask2FormerPixelDecoderEncoderMultiscaleDeformableAttention)
    self._module = attention(WIDTH, HEADS, LEVELS, POINTS)
    load(torch, self._module, weights)
    self._sizes = sizes_of(options)
    self._queries, self._maps, self._cotangent = map(
        torch.from_numpy, attention_inputs(options))
    centers = [np.stack(np.meshgrid(*((np.arange(n) + 0.5) / n for n in size[
        ::-1])), axis=-1).reshape(-1, 2) for size in self._sizes]
    self._places = torch.from_numpy(np.concatenate(centers).astype(
        np.float32))[None, :, None].repeat(options.batch, 1, LEVELS, 1)
    for x in (self._queries, self._maps):
      x.requires_grad_(True)

  def __call__(self) -> list[np.ndarray]:
    """See AttentionJax."""
    for x in (self._queries, self._maps, *self._module.parameters()):
      x.grad = None
    out, _ = self._module(
        self._queries, encoder_hidden_states=self._maps,
        reference_points=self._places, spatial_shapes_list=self._sizes)
    value = (out * self._cotangent).sum()
    value.backward()
    return [x.detach().numpy() for x in (
        value, self._queries.grad, self._maps.grad)]


def maps_of(options) -> list[np.ndarray]:
  """Four maps [b, y, x, d] of an image, the finest first."""
  return [normal(i, options.batch, *(options.image_px // stride,) * 2, WIDTH)
          for i, stride in enumerate((4, 8, 16, 32))]


class Mask2FormerJax:
  """Pixel decoder and queries of ours."""

  def __init__(self, options):
    import jax

    from dinojax.interop import translate
    from dinojax.interop.heads import mask2former as tables
    from dinojax.models.dense import mask2former
    from dinojax.parallel import mesh as mesh_lib
    config = mask2former.of_sizes(WIDTH, CLASSES, hidden=WIDTH,
                                  num_queries=QUERIES, num_pixel_layers=LAYERS[
                                      0], num_layers=LAYERS[1])
    parts = {'pixels': (mask2former.pixel_decoder, config.pixels,
                        tables.of_pixels),
             'decoder': (mask2former.query_decoder, config.decoder,
                         tables.of_queries)}
    params = {name: drawn(lambda module=module, c=c: module.init(
        jax.random.key(0), c)) for name, (module, c, _) in parts.items()}
    self.weights = {name: translate.to_theirs(
        {'params': params[name]}, table(c, 'params', ''))
                    for name, (_, c, table) in parts.items()}

    def run(params, maps):
      features, sources = mask2former.pixel_decoder.apply(
          params['pixels'], config.pixels, maps)
      return mask2former.query_decoder.apply(
          params['decoder'], config.decoder, features, sources)[-1]

    self._given = jax.device_put((params, maps_of(options)))
    self._run = jax.jit(run, compiler_options=mesh_lib.compiler_options(
        mesh_lib.make(devices=mesh_lib.one_device())))
    self._ready = jax.block_until_ready

  def __call__(self) -> list[np.ndarray]:
    """Logits of classes and of masks."""
    out = self._ready(self._run(*self._given))
    return [np.asarray(out.classes), np.asarray(out.masks)]


# Names of transformers, of those that DINOv3 has.
PIXEL_NAMES = (
    (r'^input_convs', 'input_projections'),
    (r'^encoder\.level_encoding$', 'level_embed'),
    (r'^encoder\.encoder', 'encoder'), (r'norm1', 'self_attn_layer_norm'),
    (r'norm2', 'final_layer_norm'), (r'linear(\d)', r'fc\1'),
    (r'^lateral_convs\.0\.norm', 'adapter_1.1'),
    (r'^output_convs\.0\.norm', 'layer_1.1'),
    (r'^lateral_convs\.0', 'adapter_1.0'), (r'^output_convs\.0', 'layer_1.0'),
    (r'^mask_feature', 'mask_projection'))
QUERY_NAMES = (
    (r'^query_feat', 'queries_features'), (r'^query_embed', 'queries_embedder'),
    (r'^transformer_(self|cross)_attention_layers\.(\d+)\.norm',
     r'decoder.layers.\2.\1_attn_layer_norm'),
    (r'^transformer_(self|cross)_attention_layers\.(\d+)\.\w+',
     r'decoder.layers.\2.\1_attn'),
    (r'^transformer_ffn_layers\.(\d+)\.norm',
     r'decoder.layers.\1.final_layer_norm'),
    (r'^transformer_ffn_layers\.(\d+)\.linear', r'decoder.layers.\1.fc'),
    (r'^post_norm', 'decoder.layernorm'),
    (r'^mask_embed\.layers\.(\d)',
     r'decoder.mask_predictor.mask_embedder.\1.0'))


def renamed(state: dict, names) -> dict:
  """Tensors by the names of transformers, whose self-attention has three."""
  out = {}
  for name, value in state.items():
    for pattern, new in names:
      name = re.sub(pattern, new, name)
    if '.self_attn.in_proj_' in name:
      for part, each in zip('qkv', np.split(value, 3), strict=True):
        out[name.replace('in_proj_', f'{part}_proj.')] = each
    else:
      out[name] = value
  return out


class Mask2FormerTorch:
  """Pixel decoder and queries of transformers."""

  def __init__(self, options, weights: dict):
    torch, modules = torch_modules(options)
    config = modules.Mask2FormerConfig(
        feature_size=WIDTH, mask_feature_size=WIDTH, hidden_dim=WIDTH,
        encoder_feedforward_dim=FFN, dim_feedforward=FFN,
        encoder_layers=LAYERS[0], decoder_layers=LAYERS[1] + 1,
        num_attention_heads=HEADS, num_queries=QUERIES)
    self._pixels = modules.Mask2FormerPixelDecoder(config, [WIDTH] * 4).eval()
    self._queries = modules.Mask2FormerTransformerModule(WIDTH, config).eval()
    self._classes = torch.nn.Linear(WIDTH, CLASSES + 1)
    last = 'class_embed.'
    load(torch, self._classes, {
        name.removeprefix(last): value for name, value in weights[
            'decoder'].items() if name.startswith(last)})
    load(torch, self._pixels, renamed(weights['pixels'], PIXEL_NAMES))
    load(torch, self._queries, renamed({
        name: value for name, value in weights['decoder'].items()
        if not name.startswith(last)}, QUERY_NAMES))
    self._maps = [torch.from_numpy(x.transpose(0, 3, 1, 2).copy())
                  for x in maps_of(options)]
    self._no_grad = torch.no_grad

  def __call__(self) -> list[np.ndarray]:
    """See Mask2FormerJax."""
    with self._no_grad():
      pixels = self._pixels(self._maps)
      out = self._queries(list(pixels.multi_scale_features),
                          pixels.mask_features)
      classes = self._classes(out.intermediate_hidden_states[-1])
    return [classes.transpose(0, 1).numpy(),
            out.masks_queries_logits[-1].numpy()]


PARTS = {'attention': (AttentionJax, AttentionTorch),
         'mask2former': (Mask2FormerJax, Mask2FormerTorch)}


def torch_modules(options):
  """PyTorch on so many threads, and the modules of transformers."""
  import torch
  peers.transformers()
  from transformers.models.mask2former import modeling_mask2former
  torch.set_num_threads(options.threads)
  return torch, modeling_mask2former


def load(torch, module, state: dict):
  """Weights of a module, all of them."""
  module.load_state_dict({name: torch.from_numpy(np.array(value))
                          for name, value in state.items()})


def make(side: str, options):
  """One side of a part, see bench.turns."""
  os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:options.threads])
  ours, theirs = PARTS[options.part]
  if side == 'jax':
    return ours(options)
  with np.load(options.weights) as file:
    weights: dict = {}
    for key in file.files:
      group, _, name = key.rpartition('/')
      (weights.setdefault(group, {}) if group else weights)[name] = file[key]
  return theirs(options, weights)


def save_weights(options):
  """Writes the weights of a part, by the names of the peer."""
  weights = PARTS[options.part][0](options).weights
  np.savez(options.weights, **{
      f'{group}/{name}': value for group, part in weights.items()
      for name, value in part.items()} if any(
          isinstance(part, dict) for part in weights.values()) else weights)


def main():
  """Measures and prints."""
  parser = argparse.ArgumentParser(
      description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
  parser.add_argument('--parts', nargs='*', default=list(PARTS), choices=PARTS)
  parser.add_argument('--repeats', type=int, default=5)
  parser.add_argument('--threads', type=int, default=2)
  parser.add_argument('--batch', type=int, default=2)
  parser.add_argument('--image_px', type=int, default=256)
  options = parser.parse_args()
  for part in options.parts:
    options.part = part
    with tempfile.TemporaryDirectory() as folder:
      options.weights = f'{folder}/weights.npz'
      save_weights(options)
      print(json.dumps({
          'bench': 'mask_heads', 'part': options.part,
          'image_px': options.image_px, 'batch': options.batch,
          'threads': options.threads} | turns.measure(
              make, options, repeats=options.repeats, tolerance=CLOSE)),
            flush=True)


if __name__ == '__main__':
  main()
