"""Heads of depth: their bins, losses and training."""


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
from tests import golden
from tests.kinds import dense as shared
from tests.kinds import losses
from tests.kinds import probes

SPACINGS = {'linear': 'linear', 'UD': 'linear', 'log': 'log', 'SID': 'sid',
            'chmv2_mixlog': 'mixed'}
NORMS = {'linear': 'linear', 'softmax': 'softmax', 'sigmoid': 'sigmoid',
         'chmv2_mixlog': 'mixed'}
LOSSES = {'SIGLOSS': 'sig', 'GRADIENT_LOG_LOSS': 'gradient_log',
          'GRADIENT_LOSS': 'gradient', 'L1': 'l1', 'L1_LOSS': 'l1',
          'L1LOSS': 'l1'}


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
    rate = shared.segmentation_curve(c)
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
  layers, head = shared.layers_of(case, with_cls=True), shared.head_of(
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
  return {'depth': np.asarray(metres)[:, None], 'loss': loss,
          'inference': shared.nchw(inference)} | shared.gradients_within(
              case, grads, 'grad', 'conv_depth')


@golden.kind('depth_linear_v3')
def depth_linear_v3(case):
  c = case.config
  layers = shared.layers_of(case, with_cls=c['use_cls_token'])
  head = shared.head_of(case.weights[''], 'conv_depth')
  task = depth.Depth(
      num_outputs=c['bins'], width=head['params']['kernel'].shape[0],
      cls=c['use_cls_token'], norm=c['use_batchnorm'], **depth_options(c))
  logits, _ = jax.jit(lambda layers: task.outputs(head, layers, {}, None))(
      layers)
  return {'logits': shared.nchw(logits),
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
  state = shared.started(fit, shared.head_of(case.weights[''], 'conv_depth'))
  step = shared.stepper(fit, task)
  out = {}
  place, cls = (task_lib.array_name(task.choices[dense.CHOICE], output, 0)
                for output in ('map', 'cls'))
  assert c['steps'] == len(x['patches'])
  for i, (patches, target) in enumerate(zip(
      x['patches'], x['gt'], strict=True)):
    assert target.shape[2:] == tuple(c['gt_size'])
    rates = fit.rates(jnp.int32(i))
    state, loss, grads, _ = step(state, {
        'features': {place: shared.nhwc(patches)} | (
            {cls: x['cls'][i]} if c['use_cls_token'] else {}),
        'depth': target[:, 0],
        'weight': np.ones(len(target), np.float32),
        'bad': np.zeros(len(target), bool)})
    norm = optimizer.clip_per_part({'head': grads}, None)[1]['head']
    out |= {f'step{i}/lr': rates['lr'][0], f'step{i}/beta1': rates['beta1'],
            f'step{i}/loss': loss, f'step{i}/grad_norm': norm}
    if not i:
      out |= shared.gradients_within(case, grads, 'grad0', 'conv_depth')
  return out | shared.ending(case, state, 'conv_depth', c['steps'])


@golden.kind('depth_bins')
def depth_bins(case):
  c, out = case.config, {}
  logits, cotangent = shared.nhwc(case.inputs['logits']), case.inputs[
      'cotangent'][:, 0]
  assert logits.shape == (c['batch'], *c['size'], c['bins'])
  for call in shared.calls_of(case):
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
                shared.nchw(grads), rtol=case.meta['tolerance']['grad_rtol'],
                atol=case.meta['tolerance']['grad_atol']),
            f'{name}/bins': bins.bins(c['bins'], spacing=spacing, **reach)}
  return out


@golden.kind('sig_loss', 'gradient_log_loss')
def loss_calls(case):
  """Losses with their masks and, of SigLoss, the calls before."""
  jobs, x = {}, case.inputs
  names = {'sigloss': {'sig': 1.0}, 'gradient_log': {'gradient_log': 1.0},
           'gradient': {'gradient': 1.0}, 'l1': {'l1': 1.0}}
  for call in shared.calls_of(case):
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

  for call in shared.calls_of(case):
    name, rows = call['id'], []
    crop = {'FULL': 'full', 'NYU_EIGEN': 'nyu_eigen',
            'KITTI_GARG': 'kitti_garg'}[call['mask']]
    reach = dict(min_depth=call['min_depth'], max_depth=call['max_depth'])
    align = call['align']
    flips = (False, True) if call['tta'] else (False,)
    assert c['images'] == len(x['images'])
    for i, (image, target) in enumerate(zip(
        x['images'], x['gt'][:, 0], strict=True)):
      image = shared.nhwc(image[None])
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
