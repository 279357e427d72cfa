"""Heads for every pixel: what they share, segmentation, and sizes."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from dinojax.engine import optimizer
from dinojax.engine import schedules
from dinojax.probes import fit as fit_lib
from dinojax.probes import task as task_lib
from dinojax.probes.tasks import dense
from dinojax.probes.tasks import segment
from tests import golden
from tests.kinds import probes

nhwc = lambda x: np.asarray(x).transpose(0, 2, 3, 1)
nchw = lambda x: np.asarray(x).transpose(0, 3, 1, 2)


def head_of(weights, conv):
  """A head of ours of a state dict."""
  params = {'kernel': weights[f'{conv}.weight'][:, :, 0, 0].T,
            'bias': weights[f'{conv}.bias']}
  if 'batchnorm_layer.weight' not in weights:
    return {'params': params, 'stats': {}}
  return {
      'params': params | {'scale': weights['batchnorm_layer.weight'],
                          'shift': weights['batchnorm_layer.bias']},
      'stats': {'mean': weights['batchnorm_layer.running_mean'],
                'variance': weights['batchnorm_layer.running_var']}}


def theirs(params, conv):
  """Parameters of a head by the names of the references."""
  out = {f'{conv}.weight': np.asarray(params['kernel']).T[:, :, None, None],
         f'{conv}.bias': params['bias']}
  if 'scale' in params:
    out |= {'batchnorm_layer.weight': params['scale'],
            'batchnorm_layer.bias': params['shift']}
  return out


def layers_of(case, *, with_cls):
  """Features of the layers, as the backbone gives them."""
  c, x, layers = case.config, case.inputs, []
  for i, (channels, size) in enumerate(zip(
      c['in_channels'], c['sizes'], strict=True)):
    grid = nhwc(x[f'patch{i}'])
    assert grid.shape == (c['batch'], *size, channels)
    layers.append({'map': jnp.asarray(grid)} | (
        {'cls': jnp.asarray(x[f'cls{i}'])} if with_cls else {}))
  return layers


def calls_of(case):
  """The calls, which most of these cases list twice."""
  listed = case.config['calls']
  if not case.calls:
    case.calls.extend(golden.Options(call, f'call {call["id"]}')
                      for call in listed)
  assert [dict(call) for call in case.calls] == listed
  return case.calls


def gradients_within(case, grads, prefix, conv):
  tolerance = case.meta['tolerance']
  return {f'{prefix}/{name}': golden.Within(
      value, of_largest=tolerance['grad_rtol'], atol=tolerance['grad_atol'])
          for name, value in theirs(grads, conv).items()}


@golden.kind('seg_linear_head')
def seg_linear_head(case):
  c = case.config
  c.only('use_cls_token', True, False)
  layers = layers_of(case, with_cls=bool(c.get('use_cls_token')))
  head = head_of(case.weights[''], 'conv')
  task = segment.Segment(
      num_outputs=c['classes'], width=len(head['stats']['mean']),
      cls=bool(c.get('use_cls_token')))
  logits, _ = jax.jit(lambda layers: task.outputs(head, layers, {}, None))(
      layers)
  return {'logits': nchw(logits), 'predict': nchw(task.pixels.resize(
      logits, tuple(c['rescale_to'])))}


class Given:
  """A task whose dropped channels come with the batch."""

  def draw(self, key, step, batch):
    return super().draw(key, step, batch) | {'channels': batch['channels']}


@dataclasses.dataclass(frozen=True, kw_only=True)
class GivenSegment(Given, segment.Segment):
  """Segmentation, see Given."""


def stepper(fit, task):
  """A step that also gives loss, gradients and outputs of its one head."""
  @jax.jit
  def step(state, batch):
    features = fit.features(state, batch)
    stack = state['heads'][dense.CHOICE]
    head = jax.tree.map(lambda a: a[0], {
        k: stack.get(k, {}) for k in ('params', 'stats')})
    draws = task.draw(jax.random.key(0), state['step'], batch)

    def loss(params):
      outputs, _ = task.outputs(
          head | {'params': params}, features[dense.CHOICE], batch, draws)
      return task.loss(outputs, batch, draws), outputs

    grads, outputs = jax.grad(loss, has_aux=True)(head['params'])
    heads, values, _ = fit.learn(state, features, batch)
    return (state | {'heads': heads, 'step': state['step'] + 1},
            values[dense.CHOICE][0], grads, outputs)

  return step


def started(fit, start):
  state = jax.jit(fit.create)(jax.random.key(0))
  given = {name: part for name, part in start.items() if part}
  state['heads'][dense.CHOICE] |= jax.tree.map(
      lambda a: jnp.asarray(a)[None], given)
  return state


def ending(case, state, conv, steps):
  """Weights and statistics after the last step."""
  head = jax.tree.map(lambda a: np.asarray(a[0]), state['heads'][dense.CHOICE])
  out = {f'final/{name}': value
         for name, value in theirs(head['params'], conv).items()}
  if 'stats' not in head:
    return out
  norm = 'final/batchnorm_layer'
  return out | {
      f'{norm}.running_mean': head['stats']['mean'],
      f'{norm}.running_var': head['stats']['variance'],
      # Theirs counts batches, for a mode that it does not use.
      f'{norm}.num_batches_tracked': np.int32(steps + int(
          case.weights['']['batchnorm_layer.num_batches_tracked']))}


@golden.kind('seg_linear_head_train_step')
def seg_linear_head_train_step(case):
  c, x = case.config, case.inputs
  c.skip('sizes', 'label_size', 'dropout')  # shapes, and a mask that is given
  c.only('clip', 'inf')
  width, = c['in_channels']
  task = GivenSegment(num_outputs=c['classes'], width=width)
  curve = segmentation_curve(c)
  fit = fit_lib.Fit(
      task, probes.backbone(1, width), {fit_lib.FEATURES: None},
      sweep=fit_lib.Sweep((c['lr'],), c['weight_decay']),
      rule=optimizer.adamw(beta1=c['betas'][0], beta2=c['betas'][1]),
      schedule=lambda step: {'lr': curve(step)})
  state, step = started(fit, head_of(case.weights[''], 'conv')), stepper(
      fit, task)
  out, place = {}, task_lib.array_name(task.choices[dense.CHOICE], 'map', 0)
  assert c['steps'] == len(x['features'])
  for i, (features, label, channels) in enumerate(zip(
      x['features'], x['labels'], x['dropout_mask'], strict=True)):
    assert len(label) == c['batch']
    out[f'step{i}/lr'] = fit.rates(jnp.int32(i))['lr'][0]
    state, loss, grads, logits = step(state, {
        'features': {place: nhwc(features)}, 'classes': label,
        'weight': np.ones(len(label), np.float32), 'channels': channels,
        'bad': np.zeros(len(label), bool)})
    stats = state['heads'][dense.CHOICE]['stats']
    out |= {f'step{i}/loss': loss, f'step{i}/running_mean': stats['mean'][0],
            f'step{i}/running_var': stats['variance'][0]}
    if not i:
      out['logits0'] = nchw(logits)
      out |= gradients_within(case, grads, 'grad0', 'conv')
  return out | ending(case, state, 'conv', c['steps'])


def segmentation_curve(c):
  """DINOv3's schedule of segmentation heads, of a case's options."""
  kwargs = c['kwargs']
  kwargs.only('final_div_factor', 'inf')
  kwargs.only('pct_start', 0)
  kwargs.only('anneal_strategy', 'cos')
  for name in ('use_beta1', 'update_momentum'):
    kwargs.only(name, False)
  return schedules.WarmupOneCycle(
      c['total'], kwargs['warmup_iters'], kwargs.get('warmup_ratio', 1e-6))


@golden.kind('patch_size_adaptation')
def patch_size_adaptation(case):
  out = {}
  for call in calls_of(case):
    name, unit = call['id'], call['multiple']
    image = jnp.asarray(nhwc(case.inputs[f'{name}/x']))
    assert image.shape[1:3] == tuple(call['size'])
    out |= {f'{name}/center_padding': nchw(dense.center_padded(image, unit)),
            f'{name}/stretch': nchw(dense.stretched(image, unit))}
  return out
