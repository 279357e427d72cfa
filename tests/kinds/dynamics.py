"""Many steps of the references' own training: losses and gradient norms."""

import functools
import importlib.util

import jax
import numpy as np

from dinojax.data import masking
from dinojax.models import zoo
from dinojax.parallel import mesh as mesh_lib
from dinojax.parallel import processes
from dinojax.train import method as method_lib
from dinojax.train import settings as settings_lib
from dinojax.train import state as state_lib
from dinojax.train import step as step_lib
from tests import golden
from tests.kinds import training
from tests.train import tiny

# What rounding alone does to a loss, and to a norm or a distance.
_LOSS, _NORM = 5e-6, 1e-4


@golden.kind('training_dynamics')
def training_dynamics(case, limit=None):
  """Rows of the case's columns, of the first `limit` steps or of all."""
  call, = case.calls
  call.skip('id')
  settings = settings_of(case.config)
  inputs = inputs_of(case, settings)
  mesh = mesh_lib.make(devices=jax.devices()[:1])
  rows = []
  with mesh_lib.activate(mesh):
    method = method_lib.build(settings, mesh, epoch_steps=1)
    names = training.Names(
        training.network_of(method), method.student.shapes)
    state = start(case, method, names, mesh)
    step = jax.jit(
        functools.partial(step_lib.train_step, method=method),
        out_shardings=(jax.tree.map(lambda x: x.sharding, state), None))
    for i in range(min(call['steps'], limit or call['steps'])):
      state, metrics = step(
          state, processes.to_devices(batch_of(inputs, i), mesh))
      rows.append([float(COLUMNS[str(name)](metrics))
                   for name in call['columns']])
  return {'rows': golden.Within(
      np.array(rows), atol=tolerance(case, call['columns'])[:len(rows)])}


# As DINOv2 logs: the parts of DINO as they are added up, KoLeo and iBOT halved.
COLUMNS = {
    'dino_local_crops_loss': lambda m: m['weighted/dino_local'],
    'dino_global_crops_loss': lambda m: m['weighted/dino_global'],
    'koleo_loss': lambda m: m['weighted/koleo'] / 2,
    'ibot_loss': lambda m: m['loss/ibot'] / 2,
    'grad_norm_backbone': lambda m: m['grad_norm/backbone'],
    'grad_norm_dino_head': lambda m: m['grad_norm/dino_head'],
    'grad_norm_ibot_head': lambda m: m['grad_norm/ibot_head'],
}


def tolerance(case, columns):
  """[steps, columns]: rounding, then what it grew to in the reference's run.

  `rows_perturbed` is the reference once more, after a change of its initial
  weights by rounding. As long as its losses follow the first run, ours do.
  Then it is the yardstick: ten times its own largest difference so far.
  """
  want, other = case.outputs['rows'], case.inputs['rows_perturbed']
  apart = np.maximum.accumulate(np.abs(other - want))
  is_loss = np.array([name in ('dino_local_crops_loss', 'ibot_loss',
                               'dino_global_crops_loss') for name in columns])
  least = np.where(is_loss, _LOSS, _NORM) * np.abs(want)
  follows = (10 * apart <= least)[:, is_loss].all(1)
  follows = np.logical_and.accumulate(follows)[:, None]
  # KoLeo passes through zero, where a relative error means nothing.
  near_zero = np.array([name == 'koleo_loss' for name in columns])
  return np.where(follows & ~near_zero, least, np.maximum(least, 10 * apart))


def settings_of(c) -> settings_lib.Settings:
  m, h, weights, o = c['model'], c['heads'], c['loss_weights'], c['optimizer']
  crops, plan = c['crops'], c['schedules']
  m.only('ffn', 'mlp', 'swiglu', 'swiglufused')
  o.only('name', 'AdamW')
  o.only('clip', 'backbone and heads each')
  plan.skip('style')
  width, batch = m['embed_dim'], crops['batch']
  hidden = int(width * m['ffn_ratio'])
  if m['ffn'] != 'mlp':
    hidden = zoo.swiglu_hidden(width, m['ffn_ratio'])
  head = dict(num_prototypes=h['prototypes'], hidden_dim=h['hidden'],
              bottleneck_dim=h['bottleneck'], num_layers=h['layers'],
              weight_norm=h['weight_norm'])
  centering = {'centering': 'softmax', 'sinkhorn_knopp': 'sinkhorn_knopp'}
  warm = plan['teacher_temp']
  curve = lambda start, peak, end, warmup=0: dict(
      start=start, peak=peak, end=end, warmup_steps=float(warmup))
  return settings_lib.read(dict(
      model=dict(
          embed_dim=width, depth=m['depth'], num_heads=m['num_heads'],
          patch_px=m['patch'], ffn='mlp' if m['ffn'] == 'mlp' else 'swiglu',
          ffn_hidden=hidden, layerscale=m['layerscale'],
          drop_path_rate=m['drop_path'], num_registers=m['registers'],
          interpolate_offset=m['interpolate_offset'],
          interpolate_antialias=m.get('interpolate_antialias', False),
          image_px=m['image_px']),
      data=dict(train='photos'), augment={}, masks=dict(spread_images=batch),
      crops=dict(global_px=crops['global_px'], local_px=crops['local_px'],
                 num_local=crops['num_local']),
      dino=head | dict(loss_weight=weights['dino']),
      ibot=head | dict(loss_weight=weights['ibot'],
                       separate_head=h['separate']),
      koleo=dict(loss_weight=weights['koleo'], group_images=batch),
      teacher=dict(centering=centering[c['centering']]),
      optimizer=dict(
          clip_norm=o['clip_grad'], beta1=o['betas'][0], beta2=o['betas'][1],
          layerwise_decay=o['layerwise_decay'],
          patch_embed_lr_factor=o['patch_embed_lr_mult']),
      schedules=dict(
          lr=curve(*(plan['lr'][k] for k in ('start', 'peak', 'end',
                                             'warmup'))),
          weight_decay=curve(0.0, *plan['weight_decay']),
          momentum=curve(0.0, *plan['momentum']),
          teacher_temperature=curve(
              warm['start'], warm['end'], warm['end'], warm['warmup']),
          freeze_last_layer_steps=float(plan['freeze_last_layer_steps']),
          lr_rule='none', style='v2'),
      train=dict(batch_size=batch, group_images=batch,
                 total_steps=plan['total'])))


def inputs_of(case, settings):
  """The file beside the case that makes its inputs, and whether it fits."""
  spec = importlib.util.spec_from_file_location(
      'inputs', case.folder / 'inputs.py')
  made = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(made)
  s = settings.crops
  assert (made.BATCH, made.GLOBAL_PX, made.LOCAL_PX, made.NUM_LOCAL,
          made.PATCH) == (settings.train.batch_size, s.global_px, s.local_px,
                          s.num_local, settings.model.patch_px)
  return made


def batch_of(inputs, step) -> dict:
  """Crop-major NCHW to batch-major NHWC."""
  def by_image(x):
    return np.moveaxis(x.reshape(-1, inputs.BATCH, *x.shape[1:]), 0, 1)

  crops, masks = inputs.crops(step), inputs.masks(step)
  out = {kind: by_image(x.transpose(0, 2, 3, 1)) for kind, x in crops.items()}
  mask = by_image(masks)
  index, weight = masking.collate(
      mask.reshape(masks.shape), int(masks.sum()))
  return out | {'mask': mask, 'mask_index': index[None],
                'mask_weight': weight[None],
                'bad': np.zeros(inputs.BATCH, bool)}


def start(case, method, names, mesh):
  """The state before the first step: the teacher is the student."""
  state = state_lib.create(method, mesh, 0)
  student = tiny.alone(state)
  for part in ('student', 'ema'):
    student[part] = jax.tree.map(
        lambda x, old: jax.device_put(x, old.sharding),
        names.to_ours(case.weights['']), student[part])
  return state
