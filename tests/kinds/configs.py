"""Our config of a training case of the references, from their options."""

import dataclasses

from dinojax.engine import schedules
from dinojax.models import network
from dinojax.train import method as method_lib
from dinojax.train import settings as settings_lib
from tests import golden
from tests.kinds import models

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
NOTHING = 1e-30


def weight_of(case, weight, name) -> float:
  """The weight of a loss; not quite 0 where the case tells its value."""
  logged = any(key.endswith(f'/loss/{name}') for key in case.outputs)
  return weight or (NOTHING if logged else 0.0)


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
