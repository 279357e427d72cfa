"""Batches, groups and crops that cannot be: refused with what would work."""

import warnings

import pytest

from dinojax.configs import common
from dinojax.core import config as config_lib
from dinojax.core import errors
from dinojax.train import settings as settings_lib
from tests.train import tiny


def config(**changes):
  out = tiny.config(**changes)
  out['koleo'].setdefault('group_images', None)
  return out


def read(**changes):
  return settings_lib.read(config(**changes))


@pytest.mark.parametrize('batch, micro, group', [
    (64, 1, 32), (256, 1, 32), (32, 1, 32), (20, 1, 20), (96, 2, 24),
    (100, 1, 25), (122, 1, 2), (6, 3, 2)])
def test_groups_follow_the_batch(batch, micro, group):
  s = read(train__batch_size=batch, train__num_micro_batches=micro,
           train__group_images=None, koleo__group_images=None)
  assert s.train.group_images == s.koleo.group_images == group


def test_groups_that_are_set_stay():
  s = read(train__batch_size=64, train__group_images=8,
           koleo__group_images=None)
  assert s.koleo.group_images == 8
  s = read(train__batch_size=64, train__group_images=1,
           koleo__group_images=None)
  assert (s.train.group_images, s.koleo.group_images) == (1, 32)
  assert read(koleo__group_images=4).koleo.group_images == 4


@pytest.mark.parametrize('name, group', [
    ('demo', 64), ('small_images', 64), ('vits', 32), ('vitg', 12)])
def test_the_groups_of_recipes_are_those_they_were_tried_with(name, group):
  from dinojax.runs import catalog
  s = settings_lib.read(catalog.load(name))
  assert s.train.group_images == s.koleo.group_images == group


@pytest.mark.parametrize('changes, parts', [
    (dict(crops__num_global=1), ['crops.num_global=1', 'set it to 2']),
    (dict(crops__num_global=0), ['crops.num_global=0', '1 or more']),
    (dict(train__batch_size=1, train__group_images=None,
          koleo__loss_weight=0.0),
     ['train.batch_size=1', 'set train.batch_size to 2']),
    (dict(train__batch_size=3, train__group_images=1, koleo__loss_weight=0.0,
          train__num_micro_batches=3),
     ['train.num_micro_batches=3', 'train.batch_size to 6']),
    (dict(train__batch_size=1, train__group_images=None,
          koleo__group_images=None), ['train.batch_size', 'koleo.loss_weight']),
    (dict(knn__crop_px=280), ['knn.crop_px=280', 'knn.resize_px to 280']),
    (dict(crops__global_scale=(1.0, 0.3)), ['crops.global_scale', '(0.3, 1']),
    (dict(mesh__fsdp=0), ['mesh.fsdp=0']),
    (dict(mesh__fsdp=-1, mesh__data=-1), ['mesh.data and mesh.fsdp']),
    (dict(data__train=''), ['data.train names no images']),
    (dict(data__train=()), ['data.train names no images']),
    (dict(data__train=(('folder:a', 0.0),)), ['data.train[0][1]=0.0']),
    (dict(data__homogeneous=(('folder:a', 0.7), ('folder:b', 0.7))),
     ['data.homogeneous', '1.4']),
    (dict(augment__blur_taps=4), ['augment.blur_taps=4', 'set it to 5']),
    (dict(train__total_steps=float('inf')), ['train.total_steps=inf']),
    (dict(students={'export': {}}), ['students.export', 'another name']),
    (dict(model__patch_px=0), ['model.patch_px=0 is not 1 or more']),
    (dict(model__patch_px='4'), ["model.patch_px='4' is not a whole number"]),
])
def test_what_cannot_be_is_refused(changes, parts):
  wrong = config()
  for key, value in changes.items():
    section, _, name = key.partition('__')
    if name:
      wrong.setdefault(section, {})[name] = value
    else:
      wrong[section] = value
  with pytest.raises(errors.UserError) as caught:
    settings_lib.read(wrong)
  for part in parts:
    assert part in str(caught.value)


@pytest.mark.parametrize('key', [
    'gram.source', 'init.source', 'data.validation', 'knn.validation',
    'optimizer.clip_norm', 'model.layerscale', 'train.epoch_steps',
    'checkpoint.archive_every_steps', 'log.profile_start'])
def test_none_as_text_is_none_where_a_value_may_be(key):
  c = config_lib.plain(common.smoke(common.base()))
  for name in ('lr', 'weight_decay', 'momentum', 'teacher_temperature'):
    c['schedules'][name] = common.curve(0.1, 0.1, 0.1)
  part, _, name = key.partition('.')
  settings = []
  for value in (None, 'None', ''):
    c[part][name] = value
    settings.append(settings_lib.read(c))
  assert settings[0] == settings[1] == settings[2]


def test_a_cosine_that_does_nothing_is_warned_of():
  s = read(schedules__lr=dict(start=0.1, peak=0.1, end=0.1, cosine_steps=3))
  with pytest.warns(UserWarning, match=r'lr\.cosine_steps=3 does nothing'):
    settings_lib.check_devices(s, 1)
  s = read(schedules__style='v3', schedules__lr=dict(
      start=0.1, peak=0.1, end=0.1, cosine_steps=3))
  with warnings.catch_warnings():
    warnings.filterwarnings('error', message='.*cosine')
    settings_lib.check_devices(s, 1)
