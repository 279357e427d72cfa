"""Heads for every pixel: segmentation and depth, their losses and training."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from dinojax.engine import optimizer
from dinojax.engine import schedules
from dinojax.evals import windows
from dinojax.losses import depth as depth_losses
from dinojax.metrics import depth as depth_metrics
from dinojax.models.dense import bins
from dinojax.probes import fit as fit_lib
from dinojax.probes import task as task_lib
from dinojax.probes.tasks import dense
from dinojax.probes.tasks import depth
from dinojax.probes.tasks import segment
from tests import golden
from tests.kinds import losses
from tests.kinds import probes

nhwc = lambda x: np.asarray(x).transpose(0, 2, 3, 1)
nchw = lambda x: np.asarray(x).transpose(0, 3, 1, 2)
SPACINGS = {'linear': 'linear', 'UD': 'linear', 'log': 'log', 'SID': 'sid',
            'chmv2_mixlog': 'mixed'}
NORMS = {'linear': 'linear', 'softmax': 'softmax', 'sigmoid': 'sigmoid',
         'chmv2_mixlog': 'mixed'}
LOSSES = {'SIGLOSS': 'sig', 'GRADIENT_LOG_LOSS': 'gradient_log',
          'GRADIENT_LOSS': 'gradient', 'L1': 'l1', 'L1_LOSS': 'l1',
          'L1LOSS': 'l1'}


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


def depth_curves(c):
  """DINOv3's schedules of depth heads: the rate's factor, and beta1."""
  kwargs = c['kwargs']
  final = float(kwargs['final_div_factor'])
  return (
      schedules.DepthOneCycle(
          c['total'], kwargs['warmup_iters'],
          kwargs.get('warmup_ratio', 1e-3), 1 / 25 / final),
      schedules.DepthMomentum(
          c['total'], kwargs['warmup_iters'], kwargs['base_momentum'],
          kwargs['max_momentum']))


@golden.kind('head_lr_schedules')
def head_lr_schedules(case):
  c, steps = case.config, case.inputs['steps']
  np.testing.assert_array_equal(steps, c['steps'])
  if c['recipe'] == 'text':
    curve = schedules.linear_warmup_cosine_decay(
        0.0, c['lr'], 0.0, warmup_steps=c['warmup_iters'],
        total_steps=c['total'])
    return {'lr': curve(steps).astype(np.float32)}
  c.only('recipe', 'seg', 'depth')
  beta = schedules.constant(c['betas'][0])
  if c['recipe'] == 'seg':
    rate = segmentation_curve(c)
  else:
    rate, beta = depth_curves(c)
  return {'lr': (c['lr'] * rate(steps)).astype(np.float32),
          'beta1': beta(steps).astype(np.float32)}


def depth_options(c):
  return dict(
      min_depth=c['min_depth'], max_depth=c['max_depth'],
      spacing=SPACINGS[c['bins_strategy']],
      normalize=NORMS[c['norm_strategy']])


@golden.kind('depth_linear_v2')
def depth_linear_v2(case):
  c = case.config
  layers, head = layers_of(case, with_cls=True), head_of(
      case.weights[''], 'conv_depth')
  task = depth.Depth(
      num_outputs=c['bins'], width=2 * sum(c['in_channels']), cls=True,
      place='raw', norm=False, upsample=c['upsample'], clamps=True,
      reach=c['sig_max_depth'], **depth_options(c))
  target = case.inputs['gt'][:, 0]
  size = tuple(c['image_size'])
  assert target.shape[1:] == size
  batch = {'depth': target, 'weight': np.ones(len(target), np.float32)}

  def run(params):
    outputs, _ = task.outputs(head | {'params': params}, layers, batch, None)
    loss = task.loss(outputs, batch, None)
    return loss, (loss, task.metres(outputs),
                  task.pixels.resize(task.predict(outputs), size))

  grads, (loss, metres, inference) = jax.jit(jax.grad(run, has_aux=True))(
      head['params'])
  return {'depth': np.asarray(metres)[:, None], 'inference': nchw(inference),
          'loss': loss} | gradients_within(case, grads, 'grad', 'conv_depth')


@golden.kind('depth_linear_v3')
def depth_linear_v3(case):
  c = case.config
  layers, head = layers_of(case, with_cls=c['use_cls_token']), head_of(
      case.weights[''], 'conv_depth')
  task = depth.Depth(
      num_outputs=c['bins'], width=head['params']['kernel'].shape[0],
      cls=c['use_cls_token'], norm=c['use_batchnorm'], **depth_options(c))
  logits, _ = jax.jit(lambda layers: task.outputs(head, layers, {}, None))(
      layers)
  return {'logits': nchw(logits),
          'depth': np.asarray(task.metres(logits))[:, None]}


@golden.kind('depth_linear_v3_train')
def depth_linear_v3_train(case):
  c, x = case.config, case.inputs
  c.skip('sizes', 'batch')
  width, = c['in_channels']
  weights = tuple((LOSSES[name], weight)
                  for name, weight in c['losses'].items())
  task = depth.Depth(
      num_outputs=c['bins'], width=width * (1 + c['use_cls_token']),
      cls=c['use_cls_token'], norm=c['use_batchnorm'], weights=weights,
      plain_steps=c['sig_warm_iter'], **depth_options(c))
  rate, beta = depth_curves(c)
  fit = fit_lib.Fit(
      task, probes.backbone(1, width), {fit_lib.FEATURES: None},
      sweep=fit_lib.Sweep((c['lr'],), c['weight_decay']),
      rule=optimizer.adamw(beta1=c['betas'][0], beta2=c['betas'][1]),
      schedule=lambda step: {'lr': rate(step), 'beta1': beta(step)},
      clip_norm=float(c['clip']))
  state, step = started(fit, head_of(case.weights[''], 'conv_depth')), stepper(
      fit, task)
  out = {}
  place, cls = (task_lib.array_name(task.choices[dense.CHOICE], output, 0)
                for output in ('map', 'cls'))
  assert c['steps'] == len(x['patches'])
  for i, (patches, target) in enumerate(zip(
      x['patches'], x['gt'], strict=True)):
    assert target.shape[2:] == tuple(c['gt_size'])
    rates = fit.rates(jnp.int32(i))
    state, loss, grads, _ = step(state, {
        'features': {place: nhwc(patches)} | (
            {cls: x['cls'][i]} if c['use_cls_token'] else {}),
        'depth': target[:, 0],
        'weight': np.ones(len(target), np.float32),
        'bad': np.zeros(len(target), bool)})
    norm = optimizer.clip_per_part({'head': grads}, None)[1]['head']
    out |= {f'step{i}/lr': rates['lr'][0], f'step{i}/beta1': rates['beta1'],
            f'step{i}/loss': loss, f'step{i}/grad_norm': norm}
    if not i:
      out |= gradients_within(case, grads, 'grad0', 'conv_depth')
  return out | ending(case, state, 'conv_depth', c['steps'])


@golden.kind('depth_bins')
def depth_bins(case):
  c, out = case.config, {}
  logits, cotangent = nhwc(case.inputs['logits']), case.inputs[
      'cotangent'][:, 0]
  assert logits.shape == (c['batch'], *c['size'], c['bins'])
  for call in calls_of(case):
    # DINOv2's own name for its wrong bins stands in the name of the call.
    spacing = SPACINGS[call.get('bins_strategy', 'SID')]
    reach = dict(min_depth=call['min_depth'], max_depth=call['max_depth'])
    normalize = NORMS[call.get('norm_strategy', 'linear')]
    name = call['id']
    if 'bins_strategy' not in call:
      assert name.startswith('v2_sid')

    def total(x, reach=reach, spacing=spacing, normalize=normalize):
      depth = bins.depth(x, spacing=spacing, normalize=normalize, **reach)
      return (depth * cotangent).sum(), depth

    grads, depth = jax.jit(jax.grad(total, has_aux=True))(logits)
    out |= {f'{name}/depth': np.asarray(depth)[:, None],
            f'{name}/grad_logits': golden.Within(
                nchw(grads), rtol=case.meta['tolerance']['grad_rtol'],
                atol=case.meta['tolerance']['grad_atol']),
            f'{name}/bins': bins.bins(c['bins'], spacing=spacing, **reach)}
  return out


@golden.kind('sig_loss', 'gradient_log_loss')
def loss_calls(case):
  """Losses with their masks and, of SigLoss, the calls before."""
  jobs, x = {}, case.inputs
  names = {'sigloss': {'sig': 1.0}, 'gradient_log': {'gradient_log': 1.0},
           'gradient': {'gradient': 1.0}, 'l1': {'l1': 1.0}}
  for call in calls_of(case):
    call.skip('size', 'invalid', 'equal', 'scale')  # made the inputs
    name = call['id']
    if call['loss'] == 'multi':
      weights = {LOSSES[key]: weight for key, weight in call['weights'].items()}
    else:
      weights = names[call['loss']]
    calls = call.get('warm_calls_done', 0)
    # Within a sum the warm-up is on, as the loss is made.
    warm_up = call.get('warm_up', call['loss'] == 'multi')
    variance = not warm_up or calls >= 100
    mask = x[f'{name}/mask'].astype(bool)[:, 0]
    if not call.get('use_mask', True):
      mask = np.ones_like(mask)
    jobs[name] = (
        lambda p, t, w=weights, m=mask, v=variance: depth_losses.total(
            w, p[:, 0], t[:, 0], m, with_variance=v),
        x[f'{name}/pred'], x[f'{name}/gt'])
  case.config.skip('batch')
  out, tolerance = {}, case.meta['tolerance']
  for name, (value, grad) in losses.with_gradients(jobs).items():
    out[f'{name}/loss'] = value
    out[f'{name}/grad'] = golden.Within(
        grad, rtol=tolerance['grad_rtol'], atol=tolerance['grad_atol'])
  return out


@golden.kind('depth_alignment_tta')
def depth_alignment_tta(case):
  """Their toy predictor through our views, assembly and metrics."""
  c, x, out = case.config, case.inputs, {}
  kernel = jnp.asarray(case.weights['']['weight'].transpose(2, 3, 1, 0))
  assert tuple(c['metric_order']) == depth_metrics.METRICS
  assert x['images'].shape[2:] == tuple(c['image_size'])
  size = tuple(c['gt_size'])

  @jax.jit
  def predict(image):
    return 3 * jax.nn.softplus(jax.lax.conv_general_dilated(
        image, kernel, (4, 4), ((1, 1), (1, 1)),
        dimension_numbers=('NHWC', 'HWIO', 'NHWC')))

  for call in calls_of(case):
    name, rows = call['id'], []
    crop = {'FULL': 'full', 'NYU_EIGEN': 'nyu_eigen',
            'KITTI_GARG': 'kitti_garg'}[call['mask']]
    reach = dict(min_depth=call['min_depth'], max_depth=call['max_depth'])
    align = call['align']
    flips = (False, True) if call['tta'] else (False,)
    assert c['images'] == len(x['images'])
    for i, (image, target) in enumerate(zip(
        x['images'], x['gt'][:, 0], strict=True)):
      image = nhwc(image[None])
      views = [np.asarray(predict(
          image[:, :, ::-1] if flip else image))[0] for flip in flips]
      predicted = np.asarray(windows.averaged(
          views, flips, size))[..., 0]
      assert target.shape == size
      valid = depth_metrics.valid_pixels(target, crop=crop, **reach)
      predicted, scale = depth_metrics.prepared(
          predicted, target, valid, align=align, **reach)
      rows.append(list(depth_metrics.metrics(
          predicted, target, valid).values()))
      out |= {f'{name}/pred{i}': predicted[None, None],
              f'{name}/mask{i}': valid[None, None]}
      if align:
        out[f'{name}/scale_shift{i}'] = scale
    out[f'{name}/metrics'] = np.nanmean(rows, axis=0)
  return out


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
