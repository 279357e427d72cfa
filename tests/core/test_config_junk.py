"""Junk in every key of a config: settings, or a sentence that names the key."""

import copy
import math

import pytest

from dinojax.configs import common
from dinojax.configs import vit7b_distill
from dinojax.core import config as config_lib
from dinojax.core import errors
from dinojax.models import convnext
from dinojax.train import settings as settings_lib

JUNK = (math.inf, -math.inf, math.nan, 0, -1, 0.0, -0.5, 1.5, 1e30, 10**5000,
        2**31, '', 'None', 'auto', 'x:y', '\0', None, [], {}, True, (1,),
        ((1, 2),), [['a']], {'family': []}, {1: 2}, object(), b'x')


def tiny() -> dict:
  c = common.base()
  c.train.total_steps = 4.0
  for name in ('lr', 'weight_decay', 'momentum', 'teacher_temperature'):
    c.schedules[name] = common.curve(0.1, 0.1, 0.1, warmup_steps=1.0)
  return config_lib.plain(common.smoke(c))


def students() -> dict:
  return config_lib.plain(vit7b_distill.get_config(
      'vits16,convnext_tiny,smoke'))


def stages() -> dict:
  out = tiny()
  out['model'] = common.model(convnext.ConvNeXtConfig(
      (1, 1, 1, 1), (8, 8, 8, 8)))
  out['crops'] |= {'global_px': 64, 'local_px': 32}
  out['ibot']['loss_weight'] = 0.0
  return config_lib.plain(out)


def places(config: dict, path=()):
  """Paths of all sections and values."""
  for key, value in config.items():
    yield (*path, key)
    if isinstance(value, dict):
      yield from places(value, (*path, key))


def with_value(config: dict, path: tuple, value) -> dict:
  out = inner = dict(config)
  for key in path[:-1]:
    inner[key] = dict(inner[key])
    inner = inner[key]
  inner[path[-1]] = value
  return out


def outcome(config) -> str | None:
  try:
    settings_lib.read(config)
  except errors.UserError as error:
    return str(error)
  return None


MADE = pytest.mark.parametrize('make, only', [
    (tiny, ''), (stages, 'model'), (students, 'students'),
    (students, 'distillation')])
# Of the junk, as much as a second or two allow; over all keys, all of it.
SHARES = {'': 9, 'model': 3, 'students': 23, 'distillation': 3}


def check(make, only, share):
  config = make()
  assert outcome(config) is None
  for i, path in enumerate(places(config)):
    if path[0] == only or not only:
      for value in JUNK[i % share::share]:
        text = outcome(with_value(config, path, copy.copy(value)))
        if text is not None:
          assert '.'.join(path[-2:]) in text.replace(': ', '.'), (path, text)
          assert len(text) < 4000, path


@MADE
def test_junk_in_every_key(make, only):
  check(make, only, SHARES[only])


@pytest.mark.slow
@MADE
def test_all_junk_in_every_key(make, only):
  check(make, only, 1)


@pytest.mark.parametrize('config', [
    None, 3, 'x', [], True, {}, {1: 2}, {'model': None}])
def test_junk_instead_of_a_config(config):
  assert outcome(config)
