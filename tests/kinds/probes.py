"""Heads on given features, trained by probes.fit."""

import types

import jax
import jax.numpy as jnp
import numpy as np

from dinojax.evals import linear
from dinojax.parallel import mesh as mesh_lib
from dinojax.probes import fit as fit_lib
from dinojax.probes import task as task_lib
from dinojax.probes.tasks import classify
from tests import golden

MESH = mesh_lib.make(devices=jax.devices()[:1])


def backbone(depth, width):
  """What a fit on given features asks of a backbone: its sizes."""
  config = types.SimpleNamespace(
      depth=depth, layer_dims=(width,) * depth, has_attention=True)
  return types.SimpleNamespace(mesh=MESH, params={}, config=config)


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
        'weight': jnp.asarray(case.weights[''][f'{theirs(choice)}/weight']),
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
    out[f'final/{theirs(choice)}/weight'] = heads['params']['weight']
    out[f'final/{theirs(choice)}/bias'] = heads['params']['bias']
  return {key: out[key] for key in case.outputs}
