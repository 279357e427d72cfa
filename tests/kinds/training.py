"""Whole training steps of the references, through the step that main runs."""

import contextlib
import dataclasses
import functools

import jax
import numpy as np
import pytest

from dinojax.data import masking
from dinojax.interop import meta
from dinojax.interop import translate
from dinojax.models import network
from dinojax.parallel import mesh as mesh_lib
from dinojax.parallel import processes
from dinojax.train import method as method_lib
from dinojax.train import state as state_lib
from dinojax.train import step as step_lib
from tests import golden
from tests.kinds import configs
from tests.train import tiny


def batch_of(case, step, size) -> dict:
  """Crop-major NCHW to batch-major NHWC."""
  views = {'global_crops': 2, 'gram_teacher_crops': 2,
           'local_crops': case.config['crops']['local_crops_number']}
  names = {'global': 'global_crops', 'local': 'local_crops',
           'gram': 'gram_teacher_crops'}

  def crops(name):
    x = case.inputs[f'step{step}/{name}'].transpose(0, 2, 3, 1)
    return x.reshape(views[name], -1, *x.shape[1:]).swapaxes(0, 1)

  masks = case.inputs[f'step{step}/masks']
  masks = masks.reshape(2, -1, masks.shape[-1]).swapaxes(0, 1)
  index, weight = masking.collate(masks.reshape(-1, masks.shape[-1]), size)
  return {ours: crops(theirs) for ours, theirs in names.items()
          if f'step{step}/{theirs}' in case.inputs} | {
              'mask': masks, 'mask_index': index[None],
              'mask_weight': weight[None], 'bad': np.zeros(len(masks), bool)}


class Names:
  """A part of the state in the references' names, and back."""

  def __init__(self, config: network.NetworkConfig, shapes: dict):
    self._shapes = shapes
    heads = {'dino_head': config.dino_head, 'ibot_head': config.ibot_head}
    self._tables = {
        name: meta.table(config.backbone) if name == 'backbone'
        else meta.head_table(heads[name]) for name in shapes}

  def to_ours(self, state: dict) -> dict:
    """Parameters; a bias that its mask hides stays what it is, as there."""
    body, entries = meta.complete(state)
    body |= {key: entries[key] for key in body.keys() & entries.keys()}
    parts = {'backbone': body} | meta.split_heads(state)
    return {name: translate.to_ours(parts[name], table, self._shapes[name])
            for name, table in self._tables.items()}

  def to_theirs(self, params: dict) -> dict:
    """{name: tensor} of parameters or gradients."""
    return {f'{name}.{key}': value for name, table in self._tables.items()
            for key, value in translate.to_theirs(
                params[name], table).items()}


def network_of(method) -> network.NetworkConfig:
  return method_lib.network_config(method.settings)


@contextlib.contextmanager
def gradients_seen():
  """Gives the gradients of the steps traced inside, before clipping."""
  seen, differentiate = [], step_lib.differentiate

  def keep(*args):
    grads, metrics = differentiate(*args)
    seen.append(grads)
    return grads, metrics

  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(step_lib, 'differentiate', keep)
    yield seen


@golden.kind('train_v2', 'train_v3')
def training(case):
  call, = case.calls
  call.skip('gram_teacher_updated_after_steps')
  arch = dict(call['arch'])
  first = call.get('schedule_iterations', [0])[0]
  mesh = mesh_lib.make(devices=jax.devices()[:1])
  with mesh_lib.activate(mesh):
    settings = configs.settings_of(case, arch)
    teacher = configs.frozen_teacher(call, settings)
    if 'distillation' in case.config:
      case.config['distillation'].only('enabled', teacher is not None)
    method = method_lib.build(
        settings, mesh, epoch_steps=1, frozen_teacher=teacher)
    method = dataclasses.replace(
        method, schedules=configs.schedules_of(case, first))
    names = Names(network_of(method), method.student.shapes)
    state = start(case, method, teacher, names, first, mesh)
    keep = jax.tree.map(lambda x: x.sharding, state)

    @functools.partial(jax.jit, out_shardings=(keep, None, None))
    def step(state, batch):
      with gradients_seen() as seen:
        out = step_lib.train_step(state, batch, method=method)
      return *out, *seen

    count = len(case.inputs['lr'])
    size = max(int(case.inputs[f'step{i}/upperbound']) for i in range(count))
    out, refreshed = {}, []
    for i in range(count):
      before = int(state['counters'].get('gram_refreshes', 0))
      batch = processes.to_devices(batch_of(case, i, size), mesh)
      state, metrics, grads = step(state, batch)
      if int(state['counters'].get('gram_refreshes', 0)) > before:
        refreshed.append(i)
      out |= of_step(case, i, jax.device_get(metrics),
                     names.to_theirs(jax.device_get(grads)))
  assert refreshed == list(call['gram_teacher_updated_after_steps'])
  return out | of_end(case, call, state, names)


def start(case, method, teacher, names, first, mesh):
  """The state before the first step."""
  state = state_lib.create(method, mesh, 0)
  state['step'] += first
  parts = {part: names.to_ours(case.weights[tag]) for part, tag in (
      ('student', 'student0'), ('ema', 'teacher0'))}
  if teacher:
    parts['teacher'] = Names(teacher, method.teacher.shapes).to_ours(
        case.weights['distill_teacher'])
  if method.gram:
    only = Names(network_of(method), {'backbone': method.gram.shapes})
    parts['gram'] = only.to_ours(case.weights['gram_teacher0'])['backbone']
  put = lambda values, old: jax.tree.map(
      lambda x, old: jax.device_put(x, old.sharding), values, old)
  student = tiny.alone(state)
  for part in ('student', 'ema'):
    student[part] = put(parts[part], student[part])
  if teacher:
    frozen = state['frozen']
    frozen['teacher'] = put(parts['teacher'], frozen['teacher'])
  if method.gram:
    state['gram'] = put(parts['gram'], state['gram'])
  return state


def of_step(case, i, metrics, grads) -> dict:
  """Loss terms, norms and gradients of a step, as the references log them."""
  v2 = case.meta['kind'] == 'train_v2'
  loss, weighted = (
      {key.removeprefix(f'{kind}/'): value for key, value in metrics.items()
       if key.startswith(f'{kind}/')} for kind in ('loss', 'weighted'))
  # DINOv2 logs DINO's parts by their share but without the weight of the
  # whole, KoLeo with its weight, and halves that and iBOT.
  views, share = 1, 1.0
  if v2:
    views, share = 2, case.config['dino']['loss_weight'] or configs.NOTHING
  dino = weighted if v2 else loss
  logged = {name: value / by for name, value, by in (
      ('dino_local_crops_loss', dino.get('dino_local', 0.0), share),
      ('dino_global_crops_loss', dino.get('dino_global'), share),
      ('koleo_loss', (weighted if v2 else loss).get('koleo'), views),
      ('ibot_loss', loss.get('ibot'), views)) if value is not None}
  if v2:
    case.config['train'].skip('batch_size_per_gpu')
  else:
    logged |= {
        'local_batch_size': configs.images_of(case),
        'global_batch_size': global_batch(case, i),
        'dino_local_loss_weight': metrics['schedule/dino_local_weight'],
        'gram_loss': loss.get('gram'),
        'gram_loss_weight': configs.gram_weight(case.config['gram'])
        * metrics['schedule/gram_weight'],
        'stats_only/masked_gram_loss': loss.get('gram_masked'),
        'stats_only/unmasked_gram_loss': loss.get('gram_unmasked')}
  near = lambda value: golden.Within(value, rtol=1e-4, atol=1e-6)
  out = {f'step{i}/loss/{key}': near(value)
         for key, value in logged.items() if value is not None}
  out[f'step{i}/total_loss'] = golden.Within(metrics['loss'], rtol=1e-4)
  out |= {f'step{i}/clip_norm/{key.removeprefix("grad_norm/")}': golden.Within(
      value, rtol=1e-3) for key, value in metrics.items()
          if key.startswith('grad_norm/')}
  order = [str(name) for name in case.outputs['param_names']]
  norms = [np.linalg.norm(grads[name].astype(np.float64)) for name in order]
  largest = max(norms)
  # A gradient that is zero but for rounding (the bias of keys) is noise.
  out[f'step{i}/grad_norms'] = golden.Within(
      norms, rtol=1e-3, atol=1e-6 * largest)
  if i == 0:
    out['param_names'] = order
    out |= {f'grad_step0/{key}': golden.Within(
        value, rtol=1e-3, atol=1e-6 * largest)
            for key, value in grads.items()}
  return out


def global_batch(case, i) -> int:
  """What the loop of DINOv3 says beside the data: its config's, or theirs."""
  configured = case.config['train']['batch_size_per_gpu']
  want = case.outputs.get(f'step{i}/loss/global_batch_size')
  return configured if want == configured else configs.images_of(case)


def of_end(case, call, state, names) -> dict:
  """Weights after the last step, with the noise that Adam amplifies."""
  noise = {}
  for key in call:
    if key.startswith('noise_floor'):
      noise |= dict(call[key])
  near = lambda key, value: golden.Within(
      value, atol=2e-5 + 5 * noise.get(key, 0.0))
  student = tiny.alone(state)
  parts = {'final_student': student['student'], 'final_teacher': student['ema']}
  out, final = {}, {}
  for name, params in parts.items():
    final[name] = names.to_theirs(jax.device_get(params))
    out |= {f'{name}/{key}': near(f'{name}/{key}', value)
            for key, value in final[name].items()}
  order = case.outputs['final_teacher_summary/names']
  key = 'final_teacher_summary/l2_mean_alternating'
  sums = np.array([summary(final['final_teacher'][str(n)]) for n in order])
  # Sums over a tensor add the differences of its entries up: by the root of
  # their number, where nothing but noise moves each another way.
  sizes = np.array([final['final_teacher'][str(n)].size for n in order])
  each = np.array([noise.get(f'final_teacher/{n}', 0.0) for n in order])
  entries = (1e-6 + 5 * each) * sizes ** 0.5
  out |= {'final_teacher_summary/names': order, key: golden.Within(
      sums, rtol=1e-5, atol=5 * noise.get(key, 0.0) + entries[:, None])}
  if 'gram' in state:
    ema = names.to_theirs(jax.device_get(
        {**student['student'], 'backbone': state['gram']}))
    order = case.outputs['final_gram_teacher/names']
    norms = [np.linalg.norm(ema[str(n)].astype(np.float64)) for n in order]
    out |= {'final_gram_teacher/names': order,
            'final_gram_teacher/norms': golden.Within(norms, rtol=1e-5)}
  for ours, theirs in (('dino', 'dino_loss'), ('ibot', 'ibot_patch_loss')):
    want = case.outputs.get(f'final_center/{theirs}')
    if want is not None:
      out[f'final_center/{theirs}'] = golden.Within(np.reshape(
          state['centers'][ours], want.shape), atol=1e-5)
  return out


def summary(x) -> list[float]:
  """[L2 norm, mean, alternating sum], the README of the cases says."""
  flat = x.astype(np.float64).reshape(-1)
  return [np.linalg.norm(flat), flat.mean(),
          (flat * np.cos(np.arange(flat.size))).sum()]
