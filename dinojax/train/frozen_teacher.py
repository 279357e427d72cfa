"""The network that is distilled: what it is, and whether students fit it."""

import dataclasses

from dinojax.core import errors
from dinojax.models import heads
from dinojax.models import network
from dinojax.models import zoo
from dinojax.train import sections
from dinojax.train import settings as settings_lib
from dinojax.train.objectives import prototypes

_HEADS = ('dino', 'ibot')


def from_settings(s: settings_lib.Settings) -> network.NetworkConfig | None:
  """The teacher that distillation.model names; None: the EMA teaches.

  Raises:
    UserError: it has to be read from distillation.source, and was not.
  """
  d = s.distillation
  if not d.is_on:
    return None
  if d.model is None:
    raise errors.UserError(
        f'the teacher of distillation.source={d.source} has to be read: to '
        'plan without it, set distillation.model, distillation.dino and '
        'distillation.ibot')
  head = lambda name: heads.HeadConfig(
      getattr(s, name).num_prototypes, **dataclasses.asdict(getattr(d, name)))
  return network.NetworkConfig(
      zoo.config(d.model), head('dino'), head('ibot'))


def fitted(config: network.NetworkConfig, s: settings_lib.Settings
           ) -> network.NetworkConfig:
  """The teacher as it runs beside students of these settings.

  Heads without a loss are left out; it draws nothing at random, and sees the
  crops at the size that gives it as many tokens as students have.

  Raises:
    UserError: a head that a loss needs is missing, or has another number of
      prototypes.
  """
  loss_heads = {}
  for name in _HEADS:
    section, head = getattr(s, name), getattr(config, f'{name}_head')
    loss_heads[f'{name}_head'] = head if section.loss_weight else None
    if section.loss_weight:
      _check_head(name, section, head, s.distillation)
  return dataclasses.replace(
      config, **loss_heads, backbone=config.backbone.beside(s.model),
      crops_token_px=s.model.token_px)


def _check_head(name: str, section: prototypes.PrototypeLoss,
                head: heads.HeadConfig | None, d: sections.Distillation):
  if head is None:
    raise errors.UserError(
        f'distillation.source={d.source} has no {name} head, and '
        f'{name}.loss_weight={section.loss_weight} needs one: train new heads '
        'on it first, a run with init.source set to it, and '
        'init.freeze_backbone as long as the run; then set '
        f'distillation.source to its workdir. Or set {name}.loss_weight=0')
  if head.num_prototypes != section.num_prototypes:
    raise errors.UserError(
        f'{name}.num_prototypes={section.num_prototypes}, but the teacher '
        f'(distillation.source={d.source}) has {head.num_prototypes}: its '
        'targets are over these, set the same number')


def check(config: network.NetworkConfig, read: network.NetworkConfig,
          s: settings_lib.Settings, source: str):
  """Checks that weights are those that distillation.model promised.

  Raises:
    UserError: every size that differs, with both values.
  """
  wrong, pairs = [], [('model', config.backbone, read.backbone)]
  pairs += [(name, getattr(config, f'{name}_head'),
             getattr(read, f'{name}_head'))
            for name in _HEADS if getattr(s, name).loss_weight]
  for name, old, new in pairs:
    if type(old) is not type(new):
      wrong.append(f'{name}: {type(old).__name__}, the source has '
                   f'{type(new).__name__}')
      continue
    for field in dataclasses.fields(old):
      a, b = getattr(old, field.name), getattr(new, field.name)
      if field.name in _SIZES and a != b:
        wrong.append(f'{name} {field.name} {a}, the source has {b}')
  if wrong:
    raise errors.UserError(
        f'distillation.source={source} is not what distillation.model, '
        f'distillation.dino and distillation.ibot say: {"; ".join(wrong)}; '
        'correct these, or leave distillation.model empty: then it is what is '
        'there')


# Of a network, that cannot differ.
_SIZES = ({f.name for f in dataclasses.fields(heads.HeadConfig)} | {
    'embed_dim', 'depth', 'num_heads', 'patch_px', 'ffn', 'ffn_hidden',
    'num_registers', 'position', 'depths', 'dims'})
