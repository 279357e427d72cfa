"""AdamW, its factors, and schedules."""

import jax
import jax.numpy as jnp
import numpy as np

from dinojax.core import tree
from dinojax.engine import optimizer
from dinojax.engine import schedules
from dinojax.interop import meta
from dinojax.interop import reading
from dinojax.models import heads
from dinojax.models import network
from dinojax.parallel import mesh as mesh_lib
from dinojax.train import method as recipe
from dinojax.train import multipliers
from dinojax.train import settings
from tests import golden


@golden.kind('adamw_steps')
def adamw_steps(case):
  part = lambda prefix: {'part': {
      key.removeprefix(prefix).replace('/', ' '): jnp.asarray(value)
      for key, value in case.inputs.items() if key.startswith(prefix)}}
  start, groups = part('p0/'), case.config['groups']
  pick = lambda key: {'part': {
      name: groups[name][key] for name in start['part']}}
  adam, factors = optimizer.adamw(), multipliers.Factors(
      pick('lr_multiplier'), pick('wd_multiplier'), pick('is_last_layer'))
  params, opt, out = start, jax.jit(adam.init)(start), {}
  clip = case.config['clip']

  @jax.jit
  def update(grads, opt, params, lr, last_layer_lr, weight_decay):
    grads, norms = optimizer.clip_per_part(grads, clip)
    now = {'lr': lr, 'last_layer_lr': last_layer_lr}
    return norms['part'], *adam.update(
        grads, opt, params, {'lr': lr, 'weight_decay': weight_decay},
        factors.at(now))

  for i in range(len(case.inputs['lr'])):
    out[f'clip_norm{i}'], params, opt = update(
        part(f'grad{i}/'), opt, params, *(
            case.inputs[key][i] for key in ('lr', 'last_layer_lr', 'wd')))
    out |= {f'step{i}/{k}': v for k, v in params['part'].items()}
  for theirs, ours in (('exp_avg', 'mu'), ('exp_avg_sq', 'nu')):
    out |= {f'{theirs}/{k}': v for k, v in opt[ours]['part'].items()}
  return {f'{version}/{k}': v for version in ('v2', 'v3')
          for k, v in out.items()}


@golden.kind('param_groups')
def param_groups(case):
  out = {}
  for call in case.calls:
    kwargs = call['kwargs']
    call.skip('function')
    # Called for each part by itself, DINOv3 finds no names that it could
    # apply this one to.
    kwargs.skip('dino_head_wd_multiplier')
    names = [str(name) for name in case.outputs[f'{call["id"]}/names']]
    factors = of_parameters(
        names, layerwise_decay=kwargs['lr_decay_rate'],
        patch_embed_lr_mult=kwargs['patch_embed_lr_mult'])
    rows = np.stack(factors, axis=1).astype(np.float32)
    # Groups in the order in which they appear, and their sizes.
    _, first, count = np.unique(
        rows, axis=0, return_index=True, return_counts=True)
    order = np.argsort(first)
    fused = np.concatenate(
        [rows[first[order]], count[order, None]], axis=1)
    out |= {f'{call["id"]}/{key}': value for key, value in (
        ('names', names), ('lr_multiplier', factors[0]),
        ('wd_multiplier', factors[1]), ('fused', fused),
        ('is_last_layer', factors[2].astype(bool)))}
  return out


def of_parameters(names, **options):
  """Learning-rate factor, decay factor and last layer, of every name."""
  plain = {name: next(iter(meta.unprefixed({name: 0}))) for name in names}
  state = {name: np.zeros(SHAPES.get(name.split('.')[-2] if name.endswith(
      '.weight') else name.split('.')[-1], (4,)), np.float32)
           for name in plain.values()}
  mesh = mesh_lib.make(devices=jax.devices()[:1])
  if any(name.startswith('last_layer.') for name in names):
    config, part = meta.head_config(state), 'dino_head'
    table, depth = meta.head_table(config), 0
    with mesh_lib.activate(mesh):
      shapes = network.Functional(lambda rngs: heads.Head(
          4, config, dtype=jnp.float32, rngs=rngs), mesh).shapes
  else:
    config, part = meta.config(state, {}, num_heads=1), 'backbone'
    table, depth = meta.table(config), config.depth
    shapes = reading.shapes(config)
  got = multipliers.multipliers({part: shapes}, depth=depth, **options)
  leaves = [dict(tree.items(t[part])) for t in (
      got.lr, got.weight_decay, got.last_layer)]
  rules = {key: rule for rule in table for key in rule.keys}

  def value(leaves, name):
    rule = rules[plain[name]]
    leaf = np.asarray(leaves[rule.path])
    return np.float32(leaf[rule.layer] if leaf.ndim else leaf).reshape(())

  return [np.array([value(t, name) for name in names]) for t in leaves]


# Sizes from which a configuration can be told; they do not matter otherwise.
SHAPES = {
    'proj': (4, 3, 2, 2), 'fc2': (4, 4), 'w3': (4, 4), 'pos_embed': (1, 5, 4),
    'storage_tokens': (1, 1, 4), 'register_tokens': (1, 1, 4), 'mlp': (4, 4),
    '0': (4, 4), '2': (4, 4), '4': (4, 4), 'last_layer': (4, 4),
    'weight_v': (4, 4), 'weight_g': (4, 1)}


def values(schedule, count):
  return np.array([float(schedule(step)) for step in range(count)])


@golden.kind('schedules')
def all_schedules(case):
  out = {}
  for call in case.calls:
    name = call['id']
    call.skip('function', 'note')
    if 'overrides' in call:
      out |= {f'{name}/{key}': value
              for key, value in whole_config(call).items()}
    elif 'peak' in call['kwargs']:
      out[name] = warmup_cosine(call['kwargs'])
    else:
      out |= {f'{name}/{key}': value
              for key, value in cosine(call).items()}
  return out


def warmup_cosine(k):
  total = k['total_iterations']
  return values(schedules.linear_warmup_cosine_decay(
      k['start'], k['peak'], k['end'], warmup_steps=k['warmup_iterations'],
      total_steps=total, cosine_steps=k.get('cosine_iterations')), total)


def cosine(call):
  k = call['kwargs']
  total = k['total_iters']
  make = lambda extra: schedules.cosine(
      k['base_value'], k['final_value'], total_steps=total,
      warmup_steps=k.get('warmup_iters', 0),
      start_warmup=k.get('start_warmup_value', 0.0),
      freeze_steps=k.get('freeze_iters', 0), trunc_extra=extra)
  plain = values(make(0.0), total + 2)
  return {'v2': plain[:total], 'v3': plain[:total], 'past_end': plain[total:],
          'v3_trunc_extra': values(make(call['trunc_extra']), total)}


# The yaml's words. DINOv3's code takes four times the root, and leaves a rate
# as it is by any other word.
RULES = {'v2': {'sqrt_wrt_1024': 'sqrt_1024'},
         'v3': {'sqrt_wrt_1024': 'sqrt_1024_x4',
                'linear_wrt_256': 'linear_256'}}


def whole_config(call):
  """Through the schedules that a config of ours describes."""
  o = call['overrides']
  version = 'v3' if call['id'].startswith('v3') else 'v2'
  epoch, epochs = o['L'], o['ep']
  curve = lambda start, peak, end, warmup=0, cosine=None: dict(
      start=start, peak=peak, end=end, warmup_epochs=float(warmup)) | (
          {} if cosine is None else {'cosine_epochs': float(cosine)})
  if 'schedules' in call:
    s = call['schedules']
    part = lambda key: curve(
        *(s[key][k] for k in ('start', 'peak', 'end', 'warmup_epochs')),
        s[key].get('cosine_epochs'))
    freeze = s['lr']['freeze_last_layer_epochs']
    plan = dict(lr=part('lr'), weight_decay=part('weight_decay'),
                momentum=part('momentum'),
                teacher_temperature=part('teacher_temp'), style='v3')
    o.skip('wu', 'fr', 'wt')
  else:
    freeze = o['fr']
    # ssl_default_config.yaml of each version.
    base = 0.004 if version == 'v2' else 0.001
    plan = dict(lr=curve(0.0, base, 1e-6, o['wu']),
                weight_decay=curve(0.04, 0.04, 0.4),
                momentum=curve(0.992, 0.992, 1.0),
                teacher_temperature=curve(0.04, 0.07, 0.07, o['wt']),
                trunc_extra=call.get('schedule_trunc_extra', 0.0))
  rule = RULES[version].get(
      call.get('scaling_rule', o.get('scaling_rule', 'sqrt_wrt_1024')), 'none')
  plan |= dict(lr_rule=rule, freeze_last_layer_epochs=float(freeze))
  got = recipe.make_schedules(
      settings.read(dict(
          model=dict(embed_dim=8, depth=1, num_heads=1, patch_px=16),
          data=dict(train='photos'), augment={}, masks={},
          crops=dict(local_px=96),
          dino={}, ibot={}, koleo={}, teacher={}, optimizer={},
          schedules=plan, train=dict(
              batch_size=o['b'], total_epochs=float(epochs),
              epoch_steps=epoch))), epoch)
  names = {'lr': 'lr', 'wd': 'weight_decay', 'momentum': 'momentum',
           'teacher_temp': 'teacher_temperature',
           'last_layer_lr': 'last_layer_lr'}
  past = 0 if 'schedules' in call else 2  # entries after the last step
  return {theirs: values(got[ours], epoch * epochs + past)
          for theirs, ours in names.items()} | {
              'scaled_lr': schedules.scale_lr(
                  plan['lr']['peak'], o['b'], rule)}
