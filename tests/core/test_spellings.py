"""Keys of configs that were renamed are read by their former spelling."""

import pytest

from dinojax.core import errors
from dinojax.core import spellings
from dinojax.train import settings as settings_lib
from tests.train import tiny

FORMER = {'koleo.weight': ('koleo.loss_weight', '0.2'),
          'schedules.lr.top': ('schedules.lr.peak', '0.2'),
          'steps': ('train.total_steps', '0.3')}


def test_former_keys_are_read(monkeypatch):
  config = tiny.config(koleo__weight=0.25)
  config['schedules']['lr']['top'] = config['schedules']['lr'].pop('peak')
  del config['train']['total_steps']
  config['steps'] = 7
  before = repr(config)
  monkeypatch.setattr(spellings, 'FORMER', FORMER)
  settings = settings_lib.read(config)
  assert settings.koleo.loss_weight == 0.25
  assert settings.schedules.lr.peak == tiny.LR
  assert settings.train.total.value == 7
  assert repr(config) == before
  assert settings_lib.read(tiny.config()).koleo.loss_weight == 0.1


def test_students_have_former_keys_too():
  config = spellings.current(
      {'students': {'a': {'koleo': {'weight': 1.0}}, 'b': {}}}, FORMER)
  assert config == {'students': {'a': {'koleo': {'loss_weight': 1.0}}, 'b': {}}}


def test_both_spellings_contradict_each_other():
  with pytest.raises(errors.UserError, match=(
      r'koleo\.weight was renamed koleo\.loss_weight in version 0\.2')):
    spellings.current({'koleo': {'weight': 1.0, 'loss_weight': 2.0}}, FORMER)
  # What is no section is left to the reader of sections, which names it.
  assert spellings.current({'koleo': 3}, FORMER) == {'koleo': 3}
