"""Heads on given features, trained by probes.fit."""

import dataclasses
import types

import jax
import jax.numpy as jnp
import numpy as np

from dinojax.engine import optimizer
from dinojax.engine import schedules
from dinojax.evals import linear
from dinojax.kernels import resample
from dinojax.parallel import mesh as mesh_lib
from dinojax.probes import fit as fit_lib
from dinojax.probes import task as task_lib
from dinojax.probes.tasks import classify
from dinojax.probes.tasks import segment
from tests import golden

MESH = mesh_lib.make(devices=jax.devices()[:1])


def backbone(depth, width):
  """What a fit on given features asks of a backbone: its sizes."""
  return types.SimpleNamespace(mesh=MESH, config=types.SimpleNamespace(
      depth=depth, layer_dims=(width,) * depth, has_attention=True))


def batches(case, choices, depth):
  """The features and labels of every step, by the names of a fit."""
  x = case.inputs
  for cls, patch, label in zip(
      x['cls'], x['patch'], x['labels'], strict=True):
    layers = [{'cls': cls[:, i], 'mean': patch[:, i].mean(1)}
              for i in range(depth)]
    computed = {name: [layers[i] for i in wanted.indices(depth)]
                for name, wanted in choices.items()}
    rows = len(label)
    yield {'features': task_lib.stored_features(choices, computed, depth),
           'target': label, 'weight': np.ones(rows, np.float32),
           'bad': np.zeros(rows, bool)}


@golden.kind('linear_probe_heads')
def linear_probe_heads(case):
  c = case.config
  depth, width = case.inputs['cls'].shape[2:]
  labels = case.inputs['labels']
  task = classify.Classify(
      next(iter(case.weights[''].values())).shape[1],
      tuple(c['n_last_blocks']), tuple(c['avgpool']), c['loss'])
  grid = linear.grid('v2', c['batch_size_for_scaling'], c['learning_rates'],
                     c['n_last_blocks'])
  grid = [g for g in grid if g['average_patches'] in c['avgpool']]
  rates = tuple(g['lr'] for g in grid[:len(c['learning_rates'])])
  fit = fit_lib.Fit(
      task, backbone(depth, width), {fit_lib.FEATURES: None},
      sweep=fit_lib.Sweep(rates),
      rule=linear.optimizer(c['optimizer'], c['momentum']),
      schedule=linear.schedule(c['scheduler'], c['steps']))
  assert c['steps'] == len(labels)
  state = jax.jit(fit.create)(jax.random.key(0))
  theirs = lambda choice: choice.replace('_avgpool', '_avgpool1') if (
      classify.is_averaged(choice)) else f'{choice}_avgpool0'
  for choice, heads in state['heads'].items():
    heads['params'] = {
        'kernel': jnp.asarray(case.weights[''][
            f'{theirs(choice)}/weight'].transpose(0, 2, 1)),
        'bias': jnp.asarray(case.weights[''][f'{theirs(choice)}/bias'])}

  @jax.jit
  def step(state, batch):
    heads, losses, _ = fit.learn(state, fit.features(state, batch), batch)
    return state | {'heads': heads, 'step': state['step'] + 1}, losses

  losses = []
  for batch in batches(case, task.choices, depth):
    state, now = step(state, batch)
    losses.append(np.concatenate([now[name] for name in task.choices]))
  factors = [fit.rates(jnp.int32(i)) for i in range(len(labels) + 1)]
  beta = [float(f.get('beta1', case.config['momentum'])) for f in factors]
  out = {
      'loss': np.stack(losses),
      'learning_rate': np.stack([
          np.tile(f['lr'], len(task.choices)) for f in factors]),
      'momentum_or_beta1': np.float32(beta[:-1]),
      'names': [linear.name(g) for g in grid]}
  for choice, heads in state['heads'].items():
    out[f'final/{theirs(choice)}/weight'] = np.asarray(
        heads['params']['kernel']).transpose(0, 2, 1)
    out[f'final/{theirs(choice)}/bias'] = heads['params']['bias']
  return {key: out[key] for key in case.outputs}


def segmentation_head(weights):
  """A head of ours of DINOv3's state dict."""
  return {
      'params': {'scale': weights['batchnorm_layer.weight'],
                 'shift': weights['batchnorm_layer.bias'],
                 'kernel': weights['conv.weight'][:, :, 0, 0].T,
                 'bias': weights['conv.bias']},
      'stats': {'mean': weights['batchnorm_layer.running_mean'],
                'variance': weights['batchnorm_layer.running_var']}}


def theirs(params):
  """Parameters of a head by DINOv3's names."""
  return {'batchnorm_layer.weight': params['scale'],
          'batchnorm_layer.bias': params['shift'],
          'conv.weight': np.asarray(params['kernel']).T[:, :, None, None],
          'conv.bias': params['bias']}


@golden.kind('seg_linear_head')
def seg_linear_head(case):
  c, x = case.config, case.inputs
  c.only('use_cls_token', True, False)
  c.skip('batch')
  maps = []
  for i, (channels, size) in enumerate(zip(
      c['in_channels'], c['sizes'], strict=True)):
    grid = x[f'patch{i}'].transpose(0, 2, 3, 1)
    assert grid.shape[1:] == (*size, channels)
    if c.get('use_cls_token'):
      cls = np.broadcast_to(
          x[f'cls{i}'][:, None, None], (*grid.shape[:3], channels))
      grid = np.concatenate([grid, cls], axis=-1)
    maps.append(jnp.asarray(grid))
  head = segmentation_head(case.weights[''])
  task = segment.Segment(c['classes'], len(head['stats']['mean']))
  logits, _ = jax.jit(lambda maps: task.outputs(
      head, [{'map': grid} for grid in maps], {}, None))(maps)
  nchw = lambda y: np.asarray(y).transpose(0, 3, 1, 2)
  return {'logits': nchw(logits), 'predict': nchw(resample.resize_linear(
      logits, tuple(c['rescale_to'])))}


@dataclasses.dataclass(frozen=True)
class WithDropped(segment.Segment):
  """Segmentation whose dropped channels come with the batch."""

  def draw(self, key, step, batch):
    return {'channels': batch['channels']}


@golden.kind('seg_linear_head_train_step')
def seg_linear_head_train_step(case):
  c, x = case.config, case.inputs
  c.skip('sizes', 'label_size', 'dropout')  # shapes, and a mask that is given
  c.only('clip', 'inf')
  kwargs = c['kwargs']
  kwargs.only('final_div_factor', 'inf')
  kwargs.only('pct_start', 0)
  kwargs.only('anneal_strategy', 'cos')
  for name in ('use_beta1', 'update_momentum'):
    kwargs.only(name, False)
  width, = c['in_channels']
  task = WithDropped(c['classes'], width)
  curve = schedules.WarmupOneCycle(
      c['total'], kwargs['warmup_iters'], kwargs['warmup_ratio'])
  fit = fit_lib.Fit(
      task, backbone(1, width), {fit_lib.FEATURES: None},
      sweep=fit_lib.Sweep((c['lr'],), c['weight_decay']),
      rule=optimizer.adamw(beta1=c['betas'][0], beta2=c['betas'][1]),
      schedule=lambda step: {'lr': curve(step)})
  state = jax.jit(fit.create)(jax.random.key(0))
  start = segmentation_head(case.weights[''])
  state['heads'][segment.CHOICE] |= jax.tree.map(
      lambda a: jnp.asarray(a)[None], start)
  out, place = {}, task_lib.array_name(task.choices[segment.CHOICE], 'map', 0)

  @jax.jit
  def step(state, batch):
    features = fit.features(state, batch)
    head = jax.tree.map(lambda a: a[0], {
        k: state['heads'][segment.CHOICE][k] for k in ('params', 'stats')})

    def loss(params):
      logits, _ = task.outputs(head | {'params': params}, features[
          segment.CHOICE], batch, {'channels': batch['channels']})
      return task.loss(logits, batch, {}), logits

    grads, logits = jax.grad(loss, has_aux=True)(head['params'])
    heads, losses, _ = fit.learn(state, features, batch)
    return (state | {'heads': heads, 'step': state['step'] + 1},
            losses[segment.CHOICE][0], grads, logits)

  assert c['steps'] == len(x['features'])
  for i, (features, label, channels) in enumerate(zip(
      x['features'], x['labels'], x['dropout_mask'], strict=True)):
    assert len(label) == c['batch']
    out[f'step{i}/lr'] = fit.rates(jnp.int32(i))['lr'][0]
    state, loss, grads, logits = step(state, {
        'features': {place: features.transpose(0, 2, 3, 1)}, 'label': label,
        'weight': np.ones(len(label), np.float32), 'channels': channels,
        'bad': np.zeros(len(label), bool)})
    stats = state['heads'][segment.CHOICE]['stats']
    out |= {f'step{i}/loss': loss, f'step{i}/running_mean': stats['mean'][0],
            f'step{i}/running_var': stats['variance'][0]}
    if not i:
      tolerance = case.meta['tolerance']
      out['logits0'] = np.asarray(logits).transpose(0, 3, 1, 2)
      out |= {f'grad0/{name}': golden.Within(
          value, of_largest=tolerance['grad_rtol'],
          atol=tolerance['grad_atol'])
              for name, value in theirs(grads).items()}
  head = jax.tree.map(lambda a: np.asarray(a[0]),
                      state['heads'][segment.CHOICE])
  out |= {f'final/{name}': value
          for name, value in theirs(head['params']).items()}
  return out | {
      'final/batchnorm_layer.running_mean': head['stats']['mean'],
      'final/batchnorm_layer.running_var': head['stats']['variance'],
      # Theirs counts batches, for a mode that it does not use.
      'final/batchnorm_layer.num_batches_tracked': np.int32(
          c['steps'] + int(case.weights[''][
              'batchnorm_layer.num_batches_tracked']))}
