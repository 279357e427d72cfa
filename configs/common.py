"""Base of every config, and its changes for small batches and smoke tests.

A config file builds on `base` by assignments, one value a line. `:smoke`
makes any of them end in seconds on a laptop: the same code, tiny numbers.
"""

import dataclasses
import math
import typing

from ml_collections import config_dict

from dinojax.core import config as config_lib
from dinojax.core import errors
from dinojax.evals import while_training
from dinojax.models import convnext
from dinojax.models import families
from dinojax.models import vit
from dinojax.train import sections


def words(arg: str, known: tuple[str, ...], *,
          one_of: tuple[tuple[str, ...], ...] = ()) -> tuple[str, ...]:
  """Splits an argument, 'a,b', into words, and refuses unknown ones.

  Args:
    arg: argument of get_config.
    known: words that the config file understands.
    one_of: sets of words of which at most one may be given.

  Raises:
    UserError: a word that the file does not know, or two of which it can
      follow only one.
  """
  parts = tuple(word for word in arg.split(',') if word)
  for word in parts:
    if word not in known:
      raise errors.UserError(
          f'{word!r} is not a word of this config: '
          f'{config_lib.meant(word, known)}')
  for group in one_of:
    given = [word for word in parts if word in group]
    if len(set(given)) > 1:
      raise errors.UserError(
          f'{" and ".join(map(repr, given))} exclude each other: give one of '
          f'{", ".join(group)}')
  return parts


def section(cls, **values) -> dict:
  """The keys of a settings dataclass: its defaults, then `values`.

  A duration appears with all three units, so that a command line may set
  another one than the file did. A section inside it is one of the defaults;
  of several families it is the first.
  """
  out, hints = _defaults(cls), typing.get_type_hints(cls, include_extras=True)
  for name, value in values.items():
    base, _, unit = name.rpartition('_')
    if unit in ('steps', 'epochs', 'images') and (
        config_lib.is_duration(hints.get(base))):
      out |= {f'{base}_{u}': config_dict.placeholder(float)
              for u in ('steps', 'epochs', 'images')}
    out[name] = value
  return out


def _defaults(cls, whole=None) -> dict:
  """The keys of a dataclass: of its defaults, or of an instance of it."""
  out, hints = {}, typing.get_type_hints(cls, include_extras=True)
  for field in dataclasses.fields(cls):
    default, hint = field.default, hints[field.name]
    if whole is not None:
      default = getattr(whole, field.name)
    families = config_lib.families_of(hint)
    if config_lib.is_duration(hint):
      out |= duration(field.name, default)
    elif families:
      out[field.name] = _defaults(
          families[0],
          default if isinstance(default, families[0]) else None)
    elif default is not dataclasses.MISSING:
      out[field.name] = _placeholder(default, field.type)
  return out


def duration(name: str, default) -> dict:
  """Keys of a duration in each unit; only the default's unit is set."""
  value = lambda unit: (
      float(default.value) if isinstance(default, sections.Duration)
      and unit == default.unit else None)
  return {f'{name}_{unit}': config_dict.FieldReference(value(unit), float)
          for unit in ('steps', 'epochs', 'images')}


def set_duration(c, name: str, **length):
  """Sets one unit of a duration and clears the others: epochs=10."""
  (unit, value), = length.items()
  for other in ('steps', 'epochs', 'images'):
    c[f'{name}_{other}'] = float(value) if other == unit else None


def _placeholder(value, kind):
  """Gives a value that is or may become None a type, so flags can set it."""
  kinds = [_without_range(k) for k in typing.get_args(kind) or (kind,)]
  if value is not None and type(None) not in kinds:
    return value
  plain = [k for k in kinds if k in (float, int, str)]
  if value is not None:
    plain = [k for k in plain if k is type(value)]
  return config_dict.FieldReference(value, plain[0] if plain else object)


def _without_range(kind):
  """The type of a number, of which a range may be given."""
  return kind.__origin__ if hasattr(kind, '__metadata__') else kind


def base() -> config_dict.ConfigDict:
  """Every section with its defaults."""
  c = config_dict.ConfigDict(section(sections.Settings))
  # A text, or a tuple of sources with their weights.
  c.data.train = config_dict.FieldReference('patterns:train', object)
  c.model.update(embed_dim=384, depth=12, num_heads=6, patch_px=14,
                 dtype='auto', packing='auto', attention='auto')
  c.train.batch_size = 64
  c.evals = config_dict.ConfigDict()
  measure(c, 'rankme')
  measure(c, 'linear', cached=True)
  for name in ('lr', 'weight_decay', 'momentum', 'teacher_temperature'):
    c.schedules[name] = curve(0.0, 0.0, 0.0)
  return c


def measure(c: config_dict.ConfigDict, protocol: str, **values):
  """Measures a protocol at evaluations of the run; values are its settings."""
  c.evals[protocol] = section(while_training.kind(protocol), **values)


def curve(start: float, peak: float, end: float, **durations) -> dict:
  """A schedule: warm-up from start to peak, then cosine to end."""
  return section(sections.Curve, start=start, peak=peak, end=end, **durations)


def set_model(c: config_dict.ConfigDict, model: vit.ViTConfig):
  """Writes a zoo model into the config, keeping platform choices."""
  for field in dataclasses.fields(model):
    if field.name not in ('dtype', 'packing', 'attention', 'remat'):
      c.model[field.name] = getattr(model, field.name)


def model(config: families.Config) -> dict:
  """A model of any family as a section, platform choices left open."""
  out = {'family': config.FAMILY}
  for field in dataclasses.fields(config):
    out[field.name] = _placeholder(getattr(config, field.name), field.type)
  return out | {name: 'auto' for name in ('dtype', 'packing', 'attention')
                if name in out}


def student(config: families.Config) -> dict:
  """One of several students: what a command line may want to set."""
  return {'model': model(config), 'dino': {}, 'ibot': {},
          'schedules': {'lr': {}}, 'optimizer': {},
          'train': {'share': 1.0}, 'init': section(sections.Init)}


def small_batch(c: config_dict.ConfigDict):
  """Adapts a recipe to one GPU or a CPU: batches of 32 to 512.

  Few samples cannot balance many prototypes: K ≤ 4 × batch, at least 1024. A
  shorter EMA, a learning rate that falls with the batch and a longer freeze
  of the last layer keep the start calm.
  """
  batch = c.train.batch_size
  prototypes = max(1024, min(2 ** int(math.log2(4 * batch)), 65536))
  c.dino.num_prototypes = prototypes
  c.ibot.num_prototypes = prototypes
  c.schedules.momentum.start = c.schedules.momentum.peak = 0.99
  c.model.drop_path_rate = min(c.model.drop_path_rate, 0.1)


def smoke(c: config_dict.ConfigDict) -> config_dict.ConfigDict:
  """The same recipe with numbers that end in seconds on a laptop."""
  patch = c.model.patch_px
  c.model.embed_dim = 32
  c.model.depth = 2
  c.model.num_heads = 2
  c.model.ffn_hidden = 64
  c.model.image_px = 4 * patch
  c.crops.global_px = 4 * patch
  c.crops.local_px = 2 * patch
  c.crops.num_local = 2
  for head in (c.dino, c.ibot):
    head.num_prototypes = 64
    head.hidden_dim = 32
    head.bottleneck_dim = 16
  c.data.train = 'patterns:train'
  c.data.validation = 'patterns:validation'
  c.data.num_workers = 0
  c.train.batch_size = 8
  c.train.group_images = None
  c.train.max_group_images = 4
  c.train.num_micro_batches = 1
  c.koleo.group_images = None
  c.train.epoch_steps = 2
  set_duration(c.train, 'total', steps=6)
  for name in ('lr', 'weight_decay', 'momentum', 'teacher_temperature'):
    set_duration(c.schedules[name], 'warmup', steps=2)
  set_duration(c.schedules, 'freeze_last_layer', steps=1)
  set_duration(c.checkpoint, 'every', steps=4)
  set_duration(c.knn, 'every', steps=4)
  c.knn.max_train_images = 64
  c.knn.max_validation_images = 32
  c.knn.resize_px = 4 * patch
  c.knn.crop_px = 4 * patch
  c.log.every_steps = 1
  # Heads of a probe compile longer than the run trains.
  c.evals = config_dict.ConfigDict()
  # A report takes longer than the run: `dinojax report` writes it.
  c.report.at_end = False
  c.report.patch_images = 0
  c.mesh.data = -1
  c.mesh.fsdp = 1
  return c


def smoke_distillation(c: config_dict.ConfigDict) -> config_dict.ConfigDict:
  """`smoke` of students that learn from the run of another `:smoke`."""
  original_model = c.model
  c.model = model(vit.ViTConfig(
      embed_dim=32, depth=2, num_heads=2, patch_px=_token_px(original_model)))
  smoke(c)
  c.model = original_model
  _shrink(c.model)
  for student in c.get('students', {}).values():
    _shrink(student.model)
    student.init.source = None
    if 'koleo' in student:
      student.koleo.group_images = c.koleo.group_images
    for name in ('dino', 'ibot'):
      student[name] = {'hidden_dim': 32, 'bottleneck_dim': 16}
  # In two steps from 0.994 to 1 there would be no average.
  c.schedules.momentum = curve(0.99, 0.99, 0.99)
  c.init.source = None
  c.distillation.source = 'runs/teacher'
  c.distillation.model = None
  return c


def _token_px(section: config_dict.ConfigDict) -> int:
  if section.get('family') == 'convnext':
    return convnext.ConvNeXtConfig(section.depths, section.dims).token_px
  return section.patch_px


def _shrink(section: config_dict.ConfigDict):
  """A model of its family that takes no time."""
  if section.get('family') == 'convnext':
    section.depths, section.dims = (1, 1, 1, 1), (8, 8, 16, 32)
    return
  section.embed_dim, section.depth, section.num_heads = 32, 2, 2
  section.ffn_hidden = 64
  section.image_px = 4 * section.patch_px
