"""Three whole training steps of the references, through our step."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dinojax.core import tree
from dinojax.data import masking
from dinojax.models import network as network_lib
from dinojax.parallel import mesh as mesh_lib
from dinojax.parallel import processes
from dinojax.train import recipe as recipe_lib
from dinojax.train import schedules
from dinojax.train import settings as settings_lib
from dinojax.train import state as state_lib
from dinojax.train import step as step_lib
from tests import golden
from tests.models import torch_names

CASES = ['train_v2_sinkhorn_separate_heads', 'train_v2_centering_shared_head',
         'train_v3_base', 'train_v3_gram', 'train_v3_distill']


def settings_of(case) -> settings_lib.Settings:
  c, arch = case.meta['config'], case.meta['calls']['arch']
  v2 = case.meta['kind'] == 'train_v2'
  student, crops, optim = c['student'], c['crops'], c['optim']
  head = lambda section: dict(
      num_prototypes=section['head_n_prototypes'], weight_norm=v2,
      hidden_dim=section['head_hidden_dim'],
      bottleneck_dim=section['head_bottleneck_dim'],
      num_layers=section['head_nlayers'],
      loss_weight=section['loss_weight'])
  model = dict(
      embed_dim=arch['embed_dim'], depth=arch['depth'],
      num_heads=arch['num_heads'], patch_px=student['patch_size'],
      image_px=crops['global_crops_size'], layerscale=student['layerscale'],
      ffn_hidden=int(arch['embed_dim'] * arch.get(
          'mlp_ratio', arch.get('ffn_ratio'))))
  if v2:
    model |= dict(
        position='learned', num_registers=student['num_register_tokens'],
        interpolate_offset=student['interpolate_offset'],
        interpolate_antialias=student['interpolate_antialias'])
  else:
    model |= dict(
        position='rope', num_registers=student['n_storage_tokens'],
        mask_k_bias=student['mask_k_bias'], rope_dtype='float32',
        untie_global_and_local_cls_norm=student[
            'untie_global_and_local_cls_norm'])
  if student['ffn_layer'].startswith('swiglu'):
    model['ffn'] = 'swiglu'
  batch = c['train']['batch_size_per_gpu']
  flat = dict(start=0.0, peak=0.0, end=0.0)
  centering = c['train']['centering']
  gram = c.get('gram', {'use_loss': False})
  section = {}
  if gram['use_loss']:
    section = dict(
        loss_weight=gram['loss_weight'],
        teacher='ema' if gram['ema_teacher'] else 'frozen',
        normalize=gram['normalized'], per_image=gram['img_level'],
        remove_negative=gram['remove_neg'],
        remove_only_teacher_negative=gram['remove_only_teacher_neg'],
        tokens=gram['tokens_used'],
        antialias=gram['global_teacher_resize_antialias'])
    if gram['rep_update']:
      section |= dict(
          refresh_every_steps=float(gram['update_frequency']),
          refresh_start_steps=float(gram['it_first_update']),
          max_refreshes=gram['max_updates'])
  return settings_lib.read(dict(
      gram=section, model=model, data=dict(train='photos'), augment={},
      masks={},
      crops=dict(global_px=crops['global_crops_size'],
                 local_px=crops['local_crops_size'],
                 num_local=crops['local_crops_number']),
      dino=head(c['dino']), ibot=head(c['ibot']) | dict(
          separate_head=c['ibot']['separate_head']),
      koleo=dict(loss_weight=c['dino']['koleo_loss_weight'],
                 group_images=batch),
      teacher=dict(centering='softmax' if centering == 'centering'
                   else 'sinkhorn_knopp'),
      optimizer=dict(
          clip_norm=optim['clip_grad'],
          layerwise_decay=optim['layerwise_decay'],
          patch_embed_lr_factor=optim['patch_embed_lr_mult']),
      schedules=dict(lr=flat, weight_decay=flat, momentum=flat,
                     teacher_temperature=flat),
      train=dict(batch_size=batch, group_images=batch, total_steps=3)))


def network(case, tag) -> dict:
  parts = {}
  for key, value in case.weights[tag].items():
    part, _, name = key.partition('.')
    parts.setdefault(part, {})[name] = value
  return {name: torch_names.backbone(part) if name == 'backbone'
          else torch_names.head(part) for name, part in parts.items()}


def batch_of(case, step, size) -> dict:
  """Crop-major NCHW to batch-major NHWC."""
  def crops(name, views):
    x = case.inputs[f'step{step}/{name}'].transpose(0, 2, 3, 1)
    return x.reshape(views, -1, *x.shape[1:]).swapaxes(0, 1)

  masks = case.inputs[f'step{step}/masks']
  masks = masks.reshape(2, -1, masks.shape[-1]).swapaxes(0, 1)
  index, weight = masking.collate(masks.reshape(-1, masks.shape[-1]), size)
  views = case.meta['config']['crops']['local_crops_number']
  if f'step{step}/gram_teacher_crops' in case.inputs:
    extra = {'gram': crops('gram_teacher_crops', 2)}
  else:
    extra = {}
  return extra | {
          'global': crops('global_crops', 2),
          'local': crops('local_crops', views), 'mask': masks,
          'mask_index': index[None], 'mask_weight': weight[None],
          'bad': np.zeros(len(masks), bool)}


def local_weight(case) -> float:
  dino = case.meta['config']['dino']
  if not dino.get('reweight_dino_local_loss'):
    return 1.0
  return dino['local_loss_weight_schedule']['peak']


def frozen_teacher(case, settings):
  told = case.meta['calls'].get('teacher')
  if not told:
    return None
  arch, student = told['arch'], told['cfg']['student']
  backbone = dataclasses.replace(
      settings.model, embed_dim=arch['embed_dim'], depth=arch['depth'],
      num_heads=arch['num_heads'], patch_px=student['patch_size'],
      ffn_hidden=int(arch['embed_dim'] * arch['ffn_ratio']),
      num_registers=student['n_storage_tokens'],
      mask_k_bias=student['mask_k_bias'],
      untie_global_and_local_cls_norm=False)
  head = lambda name: dataclasses.replace(
      getattr(settings, name).head, **{
          ours: told['cfg'][name][f'head_{theirs}'] for ours, theirs in (
              ('num_prototypes', 'n_prototypes'),
              ('hidden_dim', 'hidden_dim'),
              ('bottleneck_dim', 'bottleneck_dim'))})
  resolved = recipe_lib.resolve(settings, 'cpu').model
  backbone = dataclasses.replace(
      backbone, dtype=resolved.dtype, packing=resolved.packing,
      attention=resolved.attention)
  return network_lib.NetworkConfig(backbone, head('dino'), head('ibot'))


@functools.cache
def trained(name):
  case = golden.load(name)
  mesh = mesh_lib.make(devices=jax.devices()[:1])
  with mesh_lib.activate(mesh):
    settings = settings_of(case)
    recipe = recipe_lib.build(settings, mesh, epoch_steps=1,
                              frozen_teacher=frozen_teacher(case, settings))
    column = {'lr': 'lr', 'weight_decay': 'wd', 'momentum': 'momentum',
              'teacher_temperature': 'teacher_temp',
              'last_layer_lr': 'last_layer_lr'}
    first = case.meta['calls'].get('schedule_iterations', [0])[0]
    recipe = dataclasses.replace(recipe, schedules={
        ours: schedules.table([0.0] * first + list(case.inputs[theirs]))
        for ours, theirs in column.items()} | {
            'gram_weight': schedules.table([1.0]),
            'dino_local_weight': schedules.table([local_weight(case)])})
    state = state_lib.create(recipe, mesh, 0)
    state['step'] += first
    tags = {'student': 'student0', state_lib.ema_part(state): 'teacher0'}
    if recipe.has_frozen_teacher:
      tags['teacher'] = 'distill_teacher'
    if recipe.gram:
      tags['gram'] = 'gram_teacher0'
    for part, tag in tags.items():
      values = network(case, tag)
      state[part] = jax.tree.map(
          lambda x, old: jax.device_put(x, old.sharding),
          values.get('backbone', values) if part == 'gram' else values,
          state[part])
    keep = jax.tree.map(lambda x: x.sharding, state)
    step = jax.jit(functools.partial(step_lib.train_step, recipe=recipe),
                   out_shardings=(keep, None))
    size = max(int(case.inputs[f'step{i}/upperbound']) for i in range(3))
    metrics = []
    for i in range(3):
      rows = processes.to_devices(batch_of(case, i, size), mesh)
      state, out = step(state, rows)
      metrics.append({k: float(v) for k, v in out.items()})
    return case, jax.device_get({
        k: v for k, v in state.items() if k != 'key'}), metrics


@pytest.mark.parametrize('name', CASES)
def test_losses_and_norms_equal_reference(name):
  case, _, metrics = trained(name)
  v2 = case.meta['kind'] == 'train_v2'
  for i, got in enumerate(metrics):
    logged = {
        # DINOv2 logs what it adds up, iBOT and KoLeo halved.
        'dino_local_crops_loss': got['weighted/dino_local'],
        'dino_global_crops_loss': got['weighted/dino_global'],
        'koleo_loss': got['weighted/koleo'] / 2,
        'ibot_loss': got['loss/ibot'] / 2} if v2 else {
            'dino_local_crops_loss': got['loss/dino_local'],
            'dino_global_crops_loss': got['loss/dino_global'],
            'koleo_loss': got['loss/koleo'], 'ibot_loss': got['loss/ibot']}
    if 'loss/gram' in got:
      logged['gram_loss'] = got['loss/gram']
    for key, value in logged.items():
      case.check(f'step{i}/loss/{key}', value, rtol=1e-4, atol=1e-6)
    if not v2:
      case.check(f'step{i}/total_loss', got['loss'], rtol=1e-4, atol=0)
    for part in ('backbone', 'dino_head', 'ibot_head'):
      if f'step{i}/clip_norm/{part}' in case.outputs:
        case.check(f'step{i}/clip_norm/{part}', got[f'grad_norm/{part}'],
                   rtol=1e-3, atol=0)


def parts(name):
  gram = golden.catalogue()[name]['config'].get('gram', {})
  separate = gram.get('use_loss') and not gram['ema_teacher']
  return ['student', 'teacher'] + ['gram_teacher'] * bool(separate)


@pytest.mark.parametrize(
    'part, name', [(part, name) for name in CASES for part in parts(name)])
def test_final_weights_equal_reference(part, name):
  case, state, _ = trained(name)
  floors = {k: v for key, v in case.meta['calls'].items()
            if key.startswith('noise_floor') for k, v in v.items()}
  if part == 'gram_teacher':
    ours = dict(tree.items({'backbone': state['gram']}))
  else:
    part_of_ours = state_lib.ema_part(state) if part == 'teacher' else part
    ours = dict(tree.items(state[part_of_ours]))
  checked = 0
  for key, want in case.outputs.items():
    if not key.startswith(f'final_{part}/') or key.endswith(
        ('/names', '/norms')):
      continue
    module, _, rest = key.removeprefix(f'final_{part}/').partition('.')
    convert = torch_names.backbone if (
        module == 'backbone') else torch_names.head
    index = None
    if rest.startswith('blocks.'):  # alone, a block is the first of its stack
      words = rest.split('.')
      index, words[1] = int(words[1]), '0'
      rest = '.'.join(words)
    (path, value), = tree.items(convert({rest: want}))
    got = ours[f'{module}/{path}']
    got = got if index is None else got[index:index + 1]
    atol = 5 * floors.get(key, 0.0) + 2e-5
    np.testing.assert_allclose(got, value, rtol=0, atol=atol, err_msg=key)
    checked += 1
  if part == 'gram_teacher':
    check_norms(case, ours, state)
  else:
    assert checked >= 20


def check_norms(case, ours, state):
  # After the second step it became the EMA teacher of that step.
  assert state['counters']['gram_refreshes'] == 1
  names = case.outputs['final_gram_teacher/names']
  want = dict(zip(names, case.outputs['final_gram_teacher/norms'], strict=True))
  for path in ('cls_token', 'mask_token', 'registers', 'norm/scale',
               'norm/bias', 'patch_embed/bias'):
    name = {'registers': 'storage_tokens', 'norm/scale': 'norm.weight',
            'norm/bias': 'norm.bias',
            'patch_embed/bias': 'patch_embed.proj.bias'}.get(path, path)
    norm = np.linalg.norm(ours[f'backbone/{path}'])
    np.testing.assert_allclose(norm, want[f'backbone.{name}'], rtol=1e-5)


def test_centres_equal_reference():
  case, state, _ = trained('train_v2_centering_shared_head')
  for ours, theirs in (('dino', 'dino_loss'), ('ibot', 'ibot_patch_loss')):
    want = case.outputs[f'final_center/{theirs}'].reshape(-1)
    np.testing.assert_allclose(state['centers'][ours], want, atol=1e-5)


def test_masked_rows_match_the_reference_lists():
  case = golden.load('train_v3_base')
  rows = batch_of(case, 0, int(case.inputs['step0/upperbound']))
  count = int(case.inputs['step0/n_masked_patches'][0])
  assert (rows['mask_weight'] > 0).sum() == count
  np.testing.assert_allclose(
      np.sort(rows['mask_weight'][0, :count]),
      np.sort(case.inputs['step0/masks_weight'][:count]))
  assert jnp.isfinite(rows['global']).all()
