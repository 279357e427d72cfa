"""A ViT-S/14 training step on CPU against the same step in PyTorch.

  python -m bench.train_step [--steps=5] [--batch=4]

Both sides: 2 × 224 + 8 × 98 crops, DINO and iBOT heads of K prototypes,
Sinkhorn-Knopp, KoLeo, AdamW, EMA; drop path 0; the same weights, crops, masks
and threads. The losses are compared before anything is timed; then the two
take turns. Prints one JSON line; ratio > 1 means dinojax is faster.

The peer is Hugging Face's Dinov2Model with heads and losses written here in
PyTorch for this benchmark.
"""

import argparse
import json
import multiprocessing
import statistics
import time

import numpy as np

from bench import peers

K, HIDDEN, BOTTLENECK = 65536, 2048, 256
LR, WEIGHT_DECAY, MOMENTUM, TAU_T, TAU_S = 1e-4, 0.04, 0.99, 0.05, 0.1


def make_batch(batch: int, step: int) -> dict:
  """Random crops and masks of a step; [b, v, y, x, c]."""
  from dinojax.data import masking
  rng = np.random.default_rng(step)
  spec, rows, patches = masking.Masks(), 2 * batch, 256
  counts = masking.row_counts(rows, patches, spec, rng)
  masks = np.stack([
      masking.row_mask(rng, (16, 16), int(n), 128, spec).reshape(-1)
      for n in counts])
  size = sum(masking.upper_bounds(rows, patches, spec))
  index, weight = masking.collate(masks, size)
  normal = lambda *shape: rng.normal(size=shape).astype(np.float32)
  return {'global': normal(batch, 2, 224, 224, 3),
          'local': normal(batch, 8, 98, 98, 3),
          'mask': masks.reshape(batch, 2, patches),
          'mask_index': index[None], 'mask_weight': weight[None],
          'bad': np.zeros(batch, bool)}


class Jax:
  """Our side."""

  def __init__(self, batch: int, num_prototypes: int, depth: int = 12):
    import jax

    from dinojax.configs import common
    from dinojax.engine import program
    from dinojax.models import zoo
    from dinojax.parallel import mesh as mesh_lib
    from dinojax.parallel import processes
    from dinojax.train import method as method_lib
    from dinojax.train import pretraining
    from dinojax.train import settings as settings_lib
    c = common.base()
    # Hugging Face's model resamples positions without DINOv2's offset.
    common.set_model(c, zoo.vit_config(
        'dinov2_vits14', image_px=224, depth=depth, interpolate_offset=0.0,
        # Away from the start, where all CLS features are alike and KoLeo is
        # the logarithm of a rounding error.
        layerscale=1.0, token_std=0.02))
    c.crops.local_px = 98
    for head in (c.dino, c.ibot):
      head.num_prototypes = num_prototypes
    c.train.batch_size = c.train.group_images = batch
    c.koleo.group_images = batch
    c.train.total_steps = 1000.0
    c.schedules.lr_rule = 'none'
    c.schedules.style = 'v3'
    c.schedules.lr = common.curve(LR, LR, LR)
    c.schedules.weight_decay = common.curve(*[WEIGHT_DECAY] * 3)
    c.schedules.momentum = common.curve(*[MOMENTUM] * 3)
    c.schedules.teacher_temperature = common.curve(*[TAU_T] * 3)
    c.optimizer.patch_embed_lr_factor = 1.0
    settings = settings_lib.read(c)
    mesh = mesh_lib.make(devices=jax.devices()[:1])
    self.put = lambda rows: processes.to_devices(rows, mesh)
    with mesh_lib.activate(mesh):
      method = method_lib.build(settings, mesh, epoch_steps=1000)
      trainable = pretraining.Pretraining(method, mesh)
      self.state = trainable.create(jax.random.key(0))
      self.compiled = program.trace(
          trainable, trainable.variant(0), self.state,
          self.put(make_batch(batch, 0))).lower().compile(
              mesh_lib.compiler_options(mesh))

  def weights(self) -> dict:
    """The student's, on the host."""
    import jax
    return jax.device_get(self.state['students']['student']['student'])

  def step(self, rows: dict) -> float:
    """One step; the loss."""
    self.state, metrics = self.compiled(self.state, self.put(rows))
    return float(metrics['loss'])


class Torch:
  """The peer: the same step on Hugging Face's Dinov2Model."""

  def __init__(self, weights: dict, num_prototypes: int, threads: int):
    import copy

    import torch
    transformers = peers.transformers()
    torch.set_num_threads(threads)
    self.torch = torch
    depth = len(weights['backbone']['blocks']['norm1']['scale'])
    config = transformers.Dinov2Config(
        hidden_size=384, num_hidden_layers=depth, num_attention_heads=6,
        image_size=224, patch_size=14, layerscale_value=1e-5,
        drop_path_rate=0.0, attn_implementation='sdpa')

    class Student(torch.nn.Module):
      """Backbone and two heads."""

      def __init__(self):
        super().__init__()
        self.backbone = transformers.Dinov2Model(config)
        self.dino, self.ibot = (head(torch, num_prototypes) for _ in 'ab')

    self.student = Student()
    load(torch, self.student, weights)
    self.teacher = copy.deepcopy(self.student).requires_grad_(False)
    decayed, rest = [], []
    for name, p in self.student.named_parameters():
      exempt = name.endswith('bias') or 'norm' in name or 'lambda1' in name
      (rest if exempt else decayed).append(p)
    self.optimizer = torch.optim.AdamW(
        [{'params': decayed, 'weight_decay': WEIGHT_DECAY},
         {'params': rest, 'weight_decay': 0.0}], lr=LR)

  def step(self, rows: dict) -> float:
    """One step; the loss."""
    torch = self.torch
    nchw = lambda x: torch.from_numpy(np.ascontiguousarray(
        x.reshape(-1, *x.shape[2:]).transpose(0, 3, 1, 2)))
    crops, local = nchw(rows['global']), nchw(rows['local'])
    mask = torch.from_numpy(rows['mask'].reshape(-1, 256))
    index = torch.from_numpy(rows['mask_index'][0].astype(np.int64))
    weight = torch.from_numpy(rows['mask_weight'][0])
    with torch.no_grad():
      out = self.teacher.backbone(crops).last_hidden_state
      t_cls = sinkhorn(torch, self.teacher.dino(out[:, 0]))
      t_patch = sinkhorn(torch, self.teacher.ibot(
          out[:, 1:].flatten(0, 1)[index]))
    s_out = self.student.backbone(
        crops, bool_masked_pos=mask).last_hidden_state
    l_out = self.student.backbone(
        local, interpolate_pos_encoding=True).last_hidden_state
    logits = self.student.dino(torch.cat([s_out[:, 0], l_out[:, 0]]))
    patch = self.student.ibot(s_out[:, 1:].flatten(0, 1)[index])
    loss = losses(torch, logits, t_cls, patch, t_patch, weight,
                  s_out[:, 0], len(crops))
    self.optimizer.zero_grad()
    loss.backward()
    for part in (self.student.backbone, self.student.dino, self.student.ibot):
      torch.nn.utils.clip_grad_norm_(part.parameters(), 3.0)
    self.optimizer.step()
    with torch.no_grad():
      for t, s in zip(self.teacher.parameters(), self.student.parameters(),
                      strict=True):
        t.mul_(MOMENTUM).add_(s, alpha=1 - MOMENTUM)
    return float(loss.detach())


def head(torch, num_prototypes: int):
  """MLP, unit vectors, prototypes."""
  class Unit(torch.nn.Module):
    def forward(self, x):
      return torch.nn.functional.normalize(x, dim=-1)

  linear = torch.nn.Linear
  return torch.nn.Sequential(
      linear(384, HIDDEN), torch.nn.GELU(), linear(HIDDEN, HIDDEN),
      torch.nn.GELU(), linear(HIDDEN, BOTTLENECK), Unit(),
      linear(BOTTLENECK, num_prototypes, bias=False))


def sinkhorn(torch, logits):
  """Three iterations."""
  q = torch.exp((logits - logits.max()) / TAU_T).T
  q /= q.sum()
  for _ in range(3):
    q /= q.sum(1, keepdim=True)
    q /= q.shape[0]
    q /= q.sum(0, keepdim=True)
    q /= q.shape[1]
  return (q * q.shape[1]).T


def losses(torch, logits, t_cls, patch, t_patch, weight, cls, num_global):
  """DINO, iBOT and KoLeo, weighted as the recipe does."""
  log_p = torch.log_softmax(logits / TAU_S, -1)
  b = num_global // 2
  t = t_cls.view(b, 2, -1)
  glob, local = log_p[:num_global].view(b, 2, -1), log_p[num_global:].view(
      b, 8, -1)
  total = -(glob * t.flip(1)).sum() / b - (
      local.sum(1) * t.sum(1)).sum() / b
  dino = total / 18
  ibot = -((torch.log_softmax(patch / TAU_S, -1) * t_patch).sum(-1)
           * weight).sum() / num_global
  x = torch.nn.functional.normalize(cls.view(b, 2, -1), eps=1e-8, dim=-1)
  koleo = 0
  for view in range(2):
    rows = x[:, view]
    dots = rows @ rows.T
    dots.fill_diagonal_(-1)
    near = rows[dots.argmax(1)]
    distance = torch.nn.functional.pairwise_distance(rows, near, eps=1e-8)
    koleo = koleo - torch.log(distance + 1e-8).mean()
  return dino + ibot + 0.1 * koleo


def load(torch, student, weights: dict):
  """Copies our parameters into the peer."""
  tensor = lambda x: torch.from_numpy(np.array(x))
  b, state = weights['backbone'], {}
  state['embeddings.cls_token'] = tensor(b['cls_token'])[None, None]
  state['embeddings.mask_token'] = tensor(b['mask_token'])[None]
  state['embeddings.position_embeddings'] = tensor(b['pos_embed'])[None]
  state['embeddings.patch_embeddings.projection.weight'] = tensor(
      b['patch_embed']['kernel'].transpose(3, 2, 0, 1))
  state['embeddings.patch_embeddings.projection.bias'] = tensor(
      b['patch_embed']['bias'])
  state['layernorm.weight'] = tensor(b['norm']['scale'])
  state['layernorm.bias'] = tensor(b['norm']['bias'])
  names = list(student.backbone.state_dict())
  prefix = next(n for n in names if '.norm1.weight' in n).split('0.norm1')[0]
  blocks = b['blocks']
  for i in range(len(blocks['norm1']['scale'])):
    at = f'{prefix}{i}.'
    for n in ('norm1', 'norm2'):
      state[f'{at}{n}.weight'] = tensor(blocks[n]['scale'][i])
      state[f'{at}{n}.bias'] = tensor(blocks[n]['bias'][i])
    for n in ('1', '2'):
      state[f'{at}layer_scale{n}.lambda1'] = tensor(
          blocks[f'ls{n}']['gamma'][i])
      state[f'{at}mlp.fc{n}.weight'] = tensor(
          blocks['mlp'][f'fc{n}']['kernel'][i].T)
      state[f'{at}mlp.fc{n}.bias'] = tensor(blocks['mlp'][f'fc{n}']['bias'][i])
    qkv = blocks['attn']['qkv']
    for j, n in enumerate('qkv'):
      part = slice(384 * j, 384 * (j + 1))
      state[f'{at}attention.{n}_proj.weight'] = tensor(
          qkv['kernel'][i][:, part].T)
      state[f'{at}attention.{n}_proj.bias'] = tensor(qkv['bias'][i][part])
    state[f'{at}attention.o_proj.weight'] = tensor(
        blocks['attn']['proj']['kernel'][i].T)
    state[f'{at}attention.o_proj.bias'] = tensor(
        blocks['attn']['proj']['bias'][i])
  student.backbone.load_state_dict(state)
  for ours, theirs in (('dino_head', student.dino),
                       ('ibot_head', student.ibot)):
    mlp = weights[ours]['mlp']
    for i, layer in enumerate((0, 2, 4)):
      theirs[layer].weight.data = tensor(mlp[f'fc{i}']['kernel'].T)
      theirs[layer].bias.data = tensor(mlp[f'fc{i}']['bias'])
    theirs[6].weight.data = tensor(weights[ours]['last_layer']['kernel'].T)


def own_peak_gib() -> float:
  """Peak memory of this process since it started.

  Not getrusage: its peak survives fork and exec, so a child would report the
  memory of the process that started it.
  """
  with open('/proc/self/status') as f:
    line, = (line for line in f if line.startswith('VmHWM'))
  return int(line.split()[1]) / 2**20


def serve(connection, side: str, options):
  """One side in a process of its own: steps on request."""
  if side == 'jax':
    program = Jax(options.batch, options.prototypes)
    connection.send(program.weights())
  else:
    program = Torch(connection.recv(), options.prototypes, options.threads)
  while (step := connection.recv()) is not None:
    rows = make_batch(options.batch, step)
    began = time.perf_counter()
    loss = program.step(rows)
    connection.send((loss, time.perf_counter() - began))
  connection.send(own_peak_gib())


def main():
  """Compares, then prints one JSON line.

  The sides are two processes that take turns: threads and peak memory are
  each one's own.
  """
  parser = argparse.ArgumentParser()
  parser.add_argument('--batch', type=int, default=4)
  parser.add_argument('--steps', type=int, default=5)
  parser.add_argument('--prototypes', type=int, default=K)
  parser.add_argument('--threads', type=int, default=2)
  options = parser.parse_args()
  spawn, pipes = multiprocessing.get_context('spawn'), {}
  for side in ('jax', 'torch'):
    pipes[side], theirs = spawn.Pipe()
    spawn.Process(
        target=serve, args=(theirs, side, options), daemon=True).start()
  pipes['torch'].send(pipes['jax'].recv())
  losses, times = [], {side: [] for side in pipes}
  for i in range(options.steps + 1):
    loss = {}
    for side, pipe in pipes.items():
      pipe.send(i)
      loss[side], seconds = pipe.recv()
      if i:  # the first, from equal weights, is not timed
        times[side].append(seconds)
    losses.append(loss)
  memory = {}
  for side, pipe in pipes.items():
    pipe.send(None)
    memory[side] = round(pipe.recv(), 3)
  first = losses[0]
  gap = abs(first['jax'] - first['torch']) / abs(first['torch'])
  if not gap <= 1e-4:  # NaN too
    raise SystemExit(f'the losses differ by {gap:.1e}: {first}')
  seconds = {side: statistics.median(t) for side, t in times.items()}
  print(json.dumps({
      'bench': 'train_step', 'model': 'ViT-S/14', 'batch': options.batch,
      'prototypes': options.prototypes, 'loss': first, 'loss_gap': gap,
      'last_loss': losses[-1],
      'step_s': {n: round(s, 3) for n, s in seconds.items()},
      'images_per_s': {n: round(options.batch / s, 3)
                       for n, s in seconds.items()},
      'speed_ratio': round(seconds['torch'] / seconds['jax'], 3),
      'peak_rss_gib': memory,
      'memory_ratio': round(memory['jax'] / memory['torch'], 3),
      'steps': options.steps, 'threads': options.threads}))


if __name__ == '__main__':
  main()
