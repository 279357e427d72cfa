"""A detector's decoder layer, and its matching, on CPU against their peers.

  python -m bench.detector [--parts layer matching] [--repeats=7]

`layer`: a layer of the queries, forward and backward: self-attention, global
attention whose logits have the bias of the boxes added, feed-forward, at small
widths, against the same layer written here with torch.nn. `matching`: 16 images
of 300 queries and 60 objects, against scipy one by one. `step`: all matchings
of a step of a small head, beside that step: the head, and the frozen backbone.

Sides of `layer` are processes of their own that take turns, see bench.turns.
Prints a JSON line for each part.
"""

import argparse
import functools
import json
import os
import statistics
import tempfile
import time

import numpy as np

from bench import turns

HIDDEN, HEADS, FFN, INNER, STRIDE = 256, 8, 1024, 128, 16
QUERIES, GRID = 300, (32, 32)
IMAGES, OBJECTS = 16, 60
CLOSE = 1e-3


def normal(seed: int, *shape: int) -> np.ndarray:
  """Random values that both sides get."""
  return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def inputs(options) -> dict[str, np.ndarray]:
  """Queries, boxes, map and a cotangent."""
  rng, count = np.random.default_rng(7), options.batch
  center = rng.uniform(40, 470, (count, QUERIES, 2))
  sides = rng.uniform(20, 200, (count, QUERIES, 2))
  return {
      'queries': normal(1, count, QUERIES, HIDDEN),
      'places': normal(2, count, QUERIES, HIDDEN),
      'map': normal(3, count, *GRID, HIDDEN),
      'map_places': normal(4, count, *GRID, HIDDEN),
      'cotangent': normal(5, count, QUERIES, HIDDEN),
      'edges': np.concatenate([center - sides / 2, center + sides / 2],
                              axis=-1).astype(np.float32)}


def sizes():
  """Sizes of our decoder, of one layer."""
  from dinojax.models.dense import box_decoder
  return box_decoder.Config(
      num_classes=1, hidden=HIDDEN, num_heads=HEADS, ffn=FFN, num_layers=1,
      bias_hidden=INNER, stride_px=STRIDE)


def parameters():
  """Parameters of the layer, the same on both sides."""
  import jax

  from dinojax.core import tree
  from dinojax.models.dense import box_decoder
  stack = jax.eval_shape(lambda: box_decoder.init(
      jax.random.key(0), sizes()))['layers']
  return tree.map_with_name(
      lambda name, x: (0.05 * normal(x.size % 97, *x.shape[1:])
                       + name.endswith('scale')).astype(np.float32), stack)


class LayerJax:
  """The layer of ours."""

  def __init__(self, options):
    import jax
    import jax.numpy as jnp

    from dinojax.models.dense import box_decoder
    from dinojax.parallel import mesh as mesh_lib
    x, config = inputs(options), sizes()
    cells = np.tile(np.array(GRID, np.int32), (options.batch, 1))

    def run(params, queries, grid):
      seen = box_decoder.Map(grid, x['map_places'], cells)
      out = box_decoder._layer(
          config, (params, None), queries, jnp.asarray(x['places']),
          grid + x['map_places'], grid, jnp.asarray(x['edges']), seen.inside)
      return jnp.sum(out * x['cotangent'])

    self._given = jax.device_put((parameters(), x['queries'], x['map']))
    self._run = jax.jit(
        jax.value_and_grad(run, argnums=(0, 1, 2)),
        compiler_options=mesh_lib.compiler_options(
            mesh_lib.make(devices=mesh_lib.one_device())))
    self._ready = jax.block_until_ready

  def __call__(self) -> list[np.ndarray]:
    """The sum, and gradients of queries and of the map."""
    value, (_, *grads) = self._ready(self._run(*self._given))
    return [np.asarray(x) for x in (value, *grads)]


class LayerTorch:
  """The layer with torch.nn: the bias is added to the logits."""

  def __init__(self, options):
    import torch
    torch.set_num_threads(options.threads)
    self._torch = torch
    with np.load(options.weights) as file:
      weights = {name: torch.from_numpy(file[name]) for name in file.files}
    x = {name: torch.from_numpy(value) for name, value in inputs(
        options).items()}
    self._x, self._batch = x, options.batch
    for name in ('queries', 'map'):
      x[name].requires_grad_(True)

    def linear(name):
      kernel = weights[f'{name}/kernel']
      bias = weights.get(f'{name}/bias')
      module = torch.nn.Linear(*kernel.shape, bias=bias is not None)
      module.weight.data = kernel.T.contiguous()
      if bias is not None:
        module.bias.data = bias
      return module

    def norm(name):
      module = torch.nn.LayerNorm(HIDDEN, eps=1e-5)
      module.weight.data = weights[f'{name}/scale']
      module.bias.data = weights[f'{name}/bias']
      return module

    self._self = torch.nn.MultiheadAttention(HIDDEN, HEADS, batch_first=True)
    self._self.in_proj_weight.data = weights['self/qkv/kernel'].T.contiguous()
    self._self.in_proj_bias.data = weights['self/qkv/bias']
    self._self.out_proj.weight.data = weights[
        'self/output/kernel'].T.contiguous()
    self._self.out_proj.bias.data = weights['self/output/bias']
    self._parts = {name: linear(name) for name in (
        'cross/q', 'cross/k', 'cross/v', 'cross/output', 'cross/columns/0',
        'cross/columns/1', 'cross/rows/0', 'cross/rows/1', 'fc1', 'fc2')}
    self._norms = {name: norm(name) for name in (
        'self_norm', 'cross_norm', 'norm')}

  def _bias(self):
    """[b, h, n, y·x] of the distances to the edges."""
    torch, edges = self._torch, self._x['edges']
    tables = []
    for axis, name in enumerate(('columns', 'rows')):
      centers = (torch.arange(GRID[1 - axis]) + 0.5) * STRIDE
      away = edges[..., axis::2][:, :, None] - centers[None, None, :, None]
      tables.append(self._parts[f'cross/{name}/1'](torch.relu(
          self._parts[f'cross/{name}/0'](away))))
    columns, rows = tables
    both = columns[:, :, None] + rows[:, :, :, None]
    return both.flatten(2, 3).permute(0, 3, 1, 2)

  def _cross(self, queries, keys, values):
    """Attention to the map."""
    torch = self._torch
    split = lambda x: x.unflatten(-1, (HEADS, -1)).transpose(1, 2)
    q, k, v = (split(self._parts[f'cross/{name}'](x)) for name, x in (
        ('q', queries), ('k', keys), ('v', values)))
    logits = (q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1) + self._bias()
    out = torch.softmax(logits, dim=-1) @ v
    return self._parts['cross/output'](out.transpose(1, 2).flatten(2))

  def __call__(self) -> list[np.ndarray]:
    """See LayerJax."""
    x, torch = self._x, self._torch
    modules = (self._self, *self._parts.values(), *self._norms.values())
    for leaf in (x['queries'], x['map'], *(
        p for m in modules for p in m.parameters())):
      leaf.grad = None
    state, grid = x['queries'], x['map'].flatten(1, 2)
    keys = grid + x['map_places'].flatten(1, 2)
    y = self._norms['self_norm'](state)
    at = y + x['places']
    state = state + self._self(at, at, y, need_weights=False)[0]
    y = self._norms['cross_norm'](state)
    state = state + self._cross(y + x['places'], keys, grid)
    y = self._norms['norm'](state)
    state = state + self._parts['fc2'](torch.relu(self._parts['fc1'](y)))
    value = (state * x['cotangent']).sum()
    value.backward()
    return [v.detach().numpy() for v in (
        value, x['queries'].grad, x['map'].grad)]


def make(side: str, options):
  """One side of the layer, see bench.turns."""
  os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:options.threads])
  return (LayerJax if side == 'jax' else LayerTorch)(options)


def layer(options) -> dict:
  """The line of the layer."""
  from dinojax.core import tree
  with tempfile.TemporaryDirectory() as folder:
    options.weights = f'{folder}/weights.npz'
    np.savez(options.weights, **dict(tree.items(parameters())))
    return turns.measure(
        make, options, repeats=options.repeats, tolerance=CLOSE)


def matching(options) -> dict:
  """Times of our matching, of scipy's, and of a training step."""
  import jax
  from scipy import optimize

  from dinojax.losses import assignment
  from dinojax.losses import detection
  rng = np.random.default_rng(0)
  boxes = lambda *shape: np.concatenate([
      rng.uniform(50, 460, (*shape, 2)), rng.uniform(10, 200, (*shape, 2))],
                                        axis=-1).astype(np.float32)
  predicted = detection.Predicted(
      normal(0, IMAGES, QUERIES, 80), boxes(IMAGES, QUERIES),
      boxes(IMAGES, QUERIES), 0.3 * normal(1, IMAGES, QUERIES, 4))
  objects = detection.Objects(
      rng.integers(0, 80, (IMAGES, OBJECTS)).astype(np.int32),
      boxes(IMAGES, OBJECTS), np.ones((IMAGES, OBJECTS), bool))
  costs = np.asarray(jax.jit(jax.vmap(lambda p, o: detection.cost(
      p, o, detection.WEIGHTS)))(predicted, objects))
  given = jax.device_put((predicted, objects))
  whole = jax.jit(detection.match)
  each = jax.jit(jax.vmap(assignment.assign))
  got = np.asarray(whole(*given))
  for image, wanted in zip(costs, got, strict=True):
    taken = np.flatnonzero(wanted >= 0)
    if len(taken) != OBJECTS or abs(
        image[taken, wanted[taken]].sum() - image[
            optimize.linear_sum_assignment(image)].sum()) > 1e-3:
      raise SystemExit('the matchings differ')
  on_device = jax.device_put((costs.transpose(0, 2, 1), objects.present))
  runs = {
      'ours': lambda: each(*on_device).block_until_ready(),
      'with_costs': lambda: whole(*given).block_until_ready(),
      'scipy': lambda: [optimize.linear_sum_assignment(c) for c in costs]}
  times: dict[str, list[float]] = {name: [] for name in runs}
  for _ in range(3 + options.repeats):
    for name, run in runs.items():
      began = time.perf_counter()
      run()
      times[name].append(time.perf_counter() - began)
  ms = {name: round(1e3 * statistics.median(some[3:]), 2)
        for name, some in times.items()}
  return {'images': IMAGES, 'queries': QUERIES, 'objects': OBJECTS, 'ms': ms,
          'ratio': round(ms['ours'] / ms['scipy'], 2),
          'ratio_with_costs': round(ms['with_costs'] / ms['scipy'], 2)}


def step(options) -> dict:
  """A training step of a small detector, and its matchings alone.

  ViT-S at 512 pixels, 3 + 3 layers of width 256, 100 + 300 queries; 13 objects
  an image are what BCCD has.
  """
  import jax

  from bench import linear_heads
  from dinojax.losses import detection
  from dinojax.models import zoo
  from dinojax.models.dense import box_decoder
  from dinojax.models.dense import detector
  from dinojax.parallel import mesh as mesh_lib
  from dinojax.probes.tasks import detect
  layers = (2, 5, 8, 11)
  task = detect.Detect(decoder=detector.Config(
      (384,) * 4, box_decoder.Config(80, 256, 8, num_layers=3),
      num_queries=100, num_extra=300, num_encoder_layers=3), layers=layers,
                       copies=5)
  count, side = options.batch, 512 // 16
  rng = np.random.default_rng(0)
  objects = options.objects
  boxes = rng.uniform(0, 200, (count, objects, 4)).astype(np.float32)
  boxes[..., 2:] += boxes[..., :2] + 20
  batch = {'extent': np.full((count, 2), 512, np.int32), 'boxes': boxes,
           'kinds': rng.integers(0, 80, (count, objects)).astype(np.int32),
           'weight': np.ones(count, np.float32)}
  features = [{'map': normal(i, count, side, side, 384)} for i in range(4)]
  mesh = mesh_lib.make(devices=jax.devices()[:1])
  with mesh_lib.activate(mesh):
    rows = jax.NamedSharding(mesh, mesh_lib.ROWS)
    batch, features = jax.device_put((batch, features), rows)
    params = jax.jit(lambda: task.init(
        jax.random.key(0), (384,) * 4, detect.CHOICE)['params'])()

    def loss(params, features):
      outputs, _ = task.outputs(
          {'params': params, 'stats': {}}, features, batch,
          {'dropout': jax.random.key(0)})
      return task.loss(outputs, batch, {}), outputs

    def matched(outputs):
      objects = task.objects(batch)
      groups = [(each, objects, 1) for each in outputs.queries]
      groups += [(outputs.proposals, objects.as_foreground(), 1)]
      groups += [(each, objects, task.copies) for each in outputs.extra]
      return [detection.match(*group) for group in groups]

    def priced(outputs):
      objects = task.objects(batch)
      groups = [*outputs.queries, outputs.proposals, *outputs.extra]
      return [jax.vmap(lambda p, o: detection.cost(p, o, detection.WEIGHTS))(
          each, objects) for each in groups]

    whole = jax.jit(jax.value_and_grad(loss, has_aux=True))
    (_, outputs), _ = jax.block_until_ready(whole(params, features))
    backbone = linear_heads.backbone(zoo.vit_config('dinov3_vits16'))
    images = normal(9, count, 512, 512, 3)
    runs = {'head': lambda: whole(params, features),
            'backbone': lambda: backbone(images).patches,
            'costs': functools.partial(jax.jit(priced), outputs),
            'matching': functools.partial(jax.jit(matched), outputs)}
    times: dict[str, list[float]] = {name: [] for name in runs}
    for run in runs.values():
      jax.block_until_ready(run())
    for _ in range(options.repeats):
      for name, run in runs.items():
        began = time.perf_counter()
        jax.block_until_ready(run())
        times[name].append(time.perf_counter() - began)
  ms = {name: round(1e3 * statistics.median(some), 1)
        for name, some in times.items()}
  return {'objects': objects, 'ms': ms,
          'share': round(ms['matching'] / (ms['head'] + ms['backbone']), 4)}


def main():
  """Measures and prints."""
  parser = argparse.ArgumentParser(
      description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
  parts = {'layer': layer, 'matching': matching, 'step': step}
  parser.add_argument('--parts', nargs='*', default=list(parts), choices=parts)
  parser.add_argument('--repeats', type=int, default=7)
  parser.add_argument('--threads', type=int, default=2)
  parser.add_argument('--batch', type=int, default=2)
  parser.add_argument('--objects', type=int, default=13)
  options = parser.parse_args()
  for part in options.parts:
    print(json.dumps({
        'bench': 'detector', 'part': part, 'batch': options.batch,
        'threads': options.threads} | parts[part](options)), flush=True)


if __name__ == '__main__':
  main()
