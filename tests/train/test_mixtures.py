"""Several sources of training images, given in a file or by a flag."""

import dataclasses
import types
import typing

import pytest

from dinojax.commands import call
from dinojax.commands import train as train_command
from dinojax.configs import common
from dinojax.configs import demo
from dinojax.core import config as config_lib
from dinojax.core import errors
from dinojax.train import sections
from dinojax.train import settings as settings_lib

SOURCES = (('folder:a', 2.0), ('folder:b', 1.0))


def by_flag(value, name='train'):
  parsed = call.parse(train_command, 'train', [
      '--config=demo:smoke', '--workdir=w', f'--config.data.{name}={value}'])
  assert not isinstance(parsed, int)
  return settings_lib.read(parsed[0].config).data


def test_a_flag_gives_a_mixture():
  assert by_flag('(("folder:a",2.0),("folder:b",1.0))').mixture == SOURCES
  assert by_flag('(("folder:a",0.1),)', 'homogeneous').homogeneous == (
      ('folder:a', 0.1),)


@pytest.mark.parametrize('text', ['folder:a', 'folder:a,b', 'tfds:a/b'])
def test_a_flag_gives_one_source(text):
  assert by_flag(text).mixture == ((text, 1.0),)


def test_a_file_gives_a_mixture():
  c = demo.get_config('smoke')
  c.data.train = SOURCES
  assert settings_lib.read(c).data.mixture == SOURCES


@pytest.mark.parametrize('value, message', [
    ('(("folder:a",1.0))', "data.train\\[0\\]='folder:a' is not a pair of a "
     'text and a number; a tuple of one entry ends with a comma'),
    ('("folder:a","folder:b")', 'is not a pair of a text and a number'),
    ('(("folder:a",2.0),("folder:b",1.0)', 'look at its brackets'),
    ('7', 'data.train=7 is not a text')])
def test_what_is_no_mixture(value, message):
  with pytest.raises(errors.UserError, match=message):
    by_flag(value)


def kinds(hint):
  """The types that a value may have, without None and ranges."""
  if typing.get_origin(hint) in (typing.Union, types.UnionType):
    return {k for h in typing.get_args(hint) for k in kinds(h)} - {type(None)}
  hint = getattr(hint, '__origin__', hint)
  return {tuple if hint is tuple else hint}


def test_a_field_of_several_types_takes_each_in_a_file():
  """ConfigDict keeps the type that a field began with."""
  def check(cls, section, path=''):
    for name, hint in typing.get_type_hints(cls, include_extras=True).items():
      inner = config_lib.families_of(hint)
      if inner and section.get(name) is not None:
        check(inner[0], section[name], f'{path}{name}.')
      elif len(kinds(hint)) > 1 and not inner and (
          not config_lib.is_duration(hint)):
        seen.append(path + name)
        assert section.get_type(name) is object, path + name
  seen = []
  assert dataclasses.is_dataclass(sections.Settings)
  check(sections.Settings, common.base())
  assert seen == ['data.train']
