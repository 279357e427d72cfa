"""Whole training steps of the references, through the step that main runs."""

import contextlib
import dataclasses
import functools

import jax
import numpy as np
import pytest

from dinojax.data import masking
from dinojax.engine import schedules
from dinojax.interop import meta
from dinojax.interop import translate
from dinojax.models import network
from dinojax.parallel import mesh as mesh_lib
from dinojax.parallel import processes
from dinojax.train import method as method_lib
from dinojax.train import settings as settings_lib
from dinojax.train import state as state_lib
from dinojax.train import step as step_lib
from tests import golden
from tests.kinds import models
from tests.train import tiny

# Sections and options of the references' yaml that change no number of a
# step: files, precision that the cases switch off, evaluation, augmentation
# (crops are given), and what was already turned into the given schedules.
_NO_EFFECT = {
    'MODEL': None, 'compute_precision': None, 'evaluation': None,
    'checkpointing': None, 'teacher': None,
    'train': ('dataset_path', 'output_dir', 'saveckp_freq', 'seed',
              'num_workers', 'cache_dataset', 'data_config', 'checkpointing',
              'checkpointing_full', 'compile', 'cudagraphs',
              'monitor_gradient_norm', 'sharded_eval_checkpoint',
              'use_teacher_head'),
    'student': ('arch', 'ffn_ratio', 'pretrained_weights', 'drop_path_uniform',
                'resume_from_teacher_chkpt', 'fp8_filter', 'pos_embed_type',
                # Forced to float32, as the notes of the cases say.
                'pos_embed_rope_dtype'),
    'optim': ('weight_decay', 'weight_decay_end', 'base_lr', 'lr',
              'warmup_epochs', 'min_lr', 'freeze_last_layer_epochs',
              'scaling_rule', 'multi_tensor_optim', 'dump_fsdp_weights_path',
              'dino_head_wd_multiplier', 'schedule_trunc_extra'),
    'dino': ('head_norm_last_layer', 'koleo_distributed_replicas',
             'koleo_distributed_loss_group_data'),
    'ibot': ('mask_sample_probability', 'mask_ratio_min_max',
             'mask_random_circular_shift', 'head_norm_last_layer',
             'force_masking_even_with_zero_weight'),
    'gram': ('ckpt', 'it_load_ema_teacher'),
    'crops': ('global_crops_scale', 'local_crops_scale', 'rgb_mean', 'rgb_std',
              'global_local_crop_pairs_ratios', 'share_color_jitter',
              'localcrops_subset_of_globalcrops', 'horizontal_flips',
              'gram_teacher_no_distortions', 'gram_teacher_crops_size'),
    'distillation': ('full_cfg_path', 'checkpoint_path'),
}


def read_the_rest(c):
  """Marks what has no effect, and asserts what we do not do."""
  for name, keys in _NO_EFFECT.items():
    if name in c:
      c[name].skip_all() if keys is None else c[name].skip(*keys)
  for name in ('multidistillation', 'hrft'):
    if name in c:
      c[name].only('enabled', False)
      c[name].skip_all()
  c['train'].only('learn_from_teacher_tokens', False)
  c['train'].only('chunk_schedule', [])
  c['student'].only('fp8_enabled', False)
  c['student'].only('norm_layer', 'layernorm', 'layernormbf16', 'rmsnorm')
  c['student'].only('drop_path_rate', 0.0)
  c['dino'].only('force_weight_norm', False)
  c['optim'].only('optimizer', 'adamw')
  c['crops'].only('teacher_to_student_resolution_scale', 1.0)


def backbone(student, arch, image_px, v2) -> dict:
  """A `model` section; the yaml's words are those of the modules, nearly."""
  values = {key: student[key] for key in (
      'patch_size', 'ffn_layer', 'qkv_bias', 'proj_bias', 'ffn_bias')
            if key in student}
  if v2:
    same = ('num_register_tokens', 'interpolate_offset',
            'interpolate_antialias', 'block_chunks')
    values |= {key: student[key] for key in same if key in student}
    values['init_values'] = student['layerscale']
  else:
    same = ('n_storage_tokens', 'mask_k_bias', 'norm_layer', 'in_chans',
            'untie_cls_and_patch_norms', 'untie_global_and_local_cls_norm',
            *(f'pos_embed_rope_{end}' for end in (
                'base', 'min_period', 'max_period', 'normalize_coords',
                'shift_coords', 'jitter_coords', 'rescale_coords')))
    values |= {key: student[key] for key in same if key in student}
    values |= {'layerscale_init': student['layerscale'],
               'pos_embed_rope_dtype': 'fp32'}
  values |= dict(arch) | {'img_size': image_px}
  make = models.v2_config if v2 else models.v3_config
  config = make(golden.Options(values, 'student'))
  return {f.name: getattr(config, f.name)
          for f in dataclasses.fields(config)
          if f.name not in ('dtype', 'packing', 'attention', 'remat')}


def head_of(section, v2) -> dict:
  depth = {'num_layers': section['head_nlayers']} if (
      'head_nlayers' in section) else {}
  return depth | dict(
      num_prototypes=section['head_n_prototypes'], weight_norm=v2,
      hidden_dim=section['head_hidden_dim'],
      bottleneck_dim=section['head_bottleneck_dim'])


# A loss of weight 0 costs us no forward pass, and is logged there. So little
# moves nothing: Adam's epsilon is 1e-8.
_NOTHING = 1e-30


def weight_of(case, weight, name) -> float:
  """The weight of a loss; not quite 0 where the case tells its value."""
  logged = any(key.endswith(f'/loss/{name}') for key in case.outputs)
  return weight or (_NOTHING if logged else 0.0)


def images_of(case) -> int:
  """Images of a step: as many as the case holds, whatever its config says."""
  return len(case.inputs['step0/global_crops']) // 2


def settings_of(case, arch) -> settings_lib.Settings:
  c, v2 = case.config, case.meta['kind'] == 'train_v2'
  read_the_rest(c)
  crops, optim, dino, ibot = c['crops'], c['optim'], c['dino'], c['ibot']
  head = lambda s, name: head_of(s, v2) | dict(
      loss_weight=weight_of(case, s['loss_weight'], name))
  batch = images_of(case)
  spread = dino.get('koleo_loss_distributed', False)
  group, topk = (dino.get('koleo_distributed_loss_group_size'),
                 dino.get('koleo_topk', 1))
  flat = dict(start=0.0, peak=0.0, end=0.0)
  centering = {'centering': 'softmax', 'sinkhorn_knopp': 'sinkhorn_knopp'}
  return settings_lib.read(dict(
      model=backbone(
          c['student'], arch, crops['global_crops_size'], v2),
      gram=gram_section(case) if 'gram' in c else {},
      data=dict(train='photos'), augment={}, masks=dict(spread_images=batch),
      crops=dict(global_px=crops['global_crops_size'],
                 local_px=crops['local_crops_size'],
                 num_local=crops['local_crops_number']),
      dino=head(dino, 'dino_global_crops_loss') | dict(
          ignore_diagonal=dino.get('global_ignore_diagonal', True)),
      ibot=head(ibot, 'ibot_loss') | dict(
          separate_head=ibot['separate_head']),
      koleo=dict(loss_weight=weight_of(
          case, dino['koleo_loss_weight'], 'koleo_loss'),
                 topk=topk if spread else 1,
                 group_images=group if spread and group else batch),
      teacher=dict(centering=centering[c['train']['centering']]),
      optimizer=dict(
          clip_norm=optim['clip_grad'], beta1=optim['adamw_beta1'],
          beta2=optim['adamw_beta2'],
          layerwise_decay=optim['layerwise_decay'],
          patch_embed_lr_factor=optim['patch_embed_lr_mult']),
      schedules=dict(lr=flat, weight_decay=flat, momentum=flat,
                     teacher_temperature=dict(start=1.0, peak=1.0, end=1.0)),
      train=dict(batch_size=batch, group_images=batch, total_steps=3)))


def gram_section(case) -> dict:
  g = case.config['gram']
  section = dict(
      loss_weight=weight_of(case, gram_weight(g), 'gram_loss'),
      log_masked=g['compute_stats'],
      teacher='ema' if g['ema_teacher'] else 'frozen',
      normalize=g['normalized'], per_image=g['img_level'],
      remove_negative=g['remove_neg'],
      remove_only_teacher_negative=g['remove_only_teacher_neg'],
      tokens=g['tokens_used'], antialias=g['global_teacher_resize_antialias'])
  g.only('global_teacher_resize_method', 'bicubic')
  every, first, most = (g[key] for key in (
      'update_frequency', 'it_first_update', 'max_updates'))
  if g['rep_update'] and not g['ema_teacher']:
    section |= dict(
        refresh_every_steps=float(every), refresh_start_steps=float(first),
        max_refreshes=most)
  if section['teacher'] == 'frozen':
    section['source'] = 'the case'  # which `start` puts into the state
  return section if g['use_loss'] else {}


def gram_weight(g) -> float:
  """The constant factor; a schedule takes its place."""
  constant = g['loss_weight']
  return constant if g['loss_weight_schedule'] is None else 1.0


def weight_schedule(section, c):
  """One of DINOv3's weight schedules, in steps."""
  epoch = c['train']['OFFICIAL_EPOCH_LENGTH']
  cosine = section.get('cosine_epochs')
  return schedules.linear_warmup_cosine_decay(
      section['start'], section['peak'], section['end'],
      warmup_steps=section['warmup_epochs'] * epoch,
      total_steps=c['optim']['epochs'] * epoch,
      cosine_steps=None if cosine is None else cosine * epoch)


def schedules_of(case, first) -> dict:
  """The captured values, and the two weights that DINOv3 schedules."""
  c = case.config
  columns = {'lr': 'lr', 'weight_decay': 'wd', 'momentum': 'momentum',
             'teacher_temperature': 'teacher_temp',
             'last_layer_lr': 'last_layer_lr'}
  out = {ours: schedules.table([0.0] * first + list(case.inputs[theirs]))
         for ours, theirs in columns.items()}
  out |= {'gram_weight': schedules.constant(1.0),
          'dino_local_weight': schedules.constant(1.0)}
  c['train'].skip('OFFICIAL_EPOCH_LENGTH')
  c['optim'].skip('epochs')
  local = c['dino'].get('local_loss_weight_schedule')
  if local:
    local.skip_all()
    if c['dino']['reweight_dino_local_loss']:
      out['dino_local_weight'] = weight_schedule(local, c)
  gram = 'gram' in c and c['gram']['loss_weight_schedule']
  if gram:
    out['gram_weight'] = weight_schedule(gram, c)
  return out


def frozen_teacher(call, settings) -> network.NetworkConfig | None:
  """The network that is distilled."""
  told = call.get('teacher')
  if not told:
    return None
  cfg = told['cfg']
  cfg['student'].skip('arch')
  student = {key: getattr(settings.model, ours) for key, ours in (
      ('qkv_bias', 'qkv_bias'), ('proj_bias', 'proj_bias'),
      ('ffn_bias', 'ffn_bias'))} | dict(cfg['student'])
  values = backbone(golden.Options(student, 'teacher'), told['arch'],
                    cfg['crops']['global_crops_size'], v2=False)
  model = method_lib.resolve(settings, 'cpu').model
  head = lambda name: dataclasses.replace(
      getattr(settings, name).head, **head_of(cfg[name], False))
  return network.NetworkConfig(
      dataclasses.replace(model, **values), head('dino'), head('ibot'))


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
    settings = settings_of(case, arch)
    teacher = frozen_teacher(call, settings)
    if 'distillation' in case.config:
      case.config['distillation'].only('enabled', teacher is not None)
    method = method_lib.build(
        settings, mesh, epoch_steps=1, frozen_teacher=teacher)
    method = dataclasses.replace(method, schedules=schedules_of(case, first))
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
    views, share = 2, case.config['dino']['loss_weight'] or _NOTHING
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
        'local_batch_size': images_of(case),
        'global_batch_size': global_batch(case, i),
        'dino_local_loss_weight': metrics['schedule/dino_local_weight'],
        'gram_loss': loss.get('gram'),
        'gram_loss_weight': gram_weight(case.config['gram'])
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
  return configured if want == configured else images_of(case)


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
