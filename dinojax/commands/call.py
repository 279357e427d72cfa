"""How every command is called: flags, help, names of configs, mistakes.

A mistake is one sentence on stderr and exit code 2, never a traceback.
"""

import ast
from collections.abc import Callable, Iterator, Sequence
import difflib
import functools
import inspect
import operator
import os
import re
import sys
import textwrap
import types

from absl import flags
from absl import logging as absl_logging
from ml_collections import config_dict
from ml_collections import config_flags

from dinojax.core import config as config_lib
from dinojax.core import errors
from dinojax.runs import catalog

_NONE = ('None', 'none')
_WIDTH, _INDENT = 80, 6
ITEM = '\n- '  # begins a line of its own in the help of a flag


class _Number(flags.ArgumentParser):
  """A number of a config, or None."""

  def __init__(self, kind: type, words: str):
    self._kind, self._words = kind, words

  def parse(self, argument):
    """The number; the text says what it must be."""
    if argument is None or argument in _NONE:
      return None
    try:
      return self._kind(argument)
    except (TypeError, ValueError):
      raise ValueError(f'it must be {self._words}, or None where that is '
                       'allowed') from None

  def flag_type(self):
    """Name of the type, for absl."""
    return self._kind.__name__


config_flags.register_flag_parser_for_type(
    int, _Number(int, 'a whole number'))
config_flags.register_flag_parser_for_type(
    float, _Number(float, 'a number'))


class _Config(flags.ArgumentParser):
  """A config by name or path; fields that are set exist."""

  def __init__(self, name: str, argv: Sequence[str], kind: str | None = None):
    self.name, self._argv, self._kind = name, argv, kind

  def parse(self, path):
    """The config, locked.

    Raises:
      UserError: no such config or field, with what may be meant.
    """
    config = catalog.load(path, self.name, kind=self._kind)
    given = set(_overrides(self.name, self._argv))
    for key in given:
      _check_field(config, self.name, key,
                   self._argv[0] if self._kind else 'dinojax train')
    for key in given:
      _give_way(config, key, given)
    return config.lock()

  def flag_type(self):
    """Name of the type, for absl."""
    return 'config'


def config_flag(name: str, text: str, values: flags.FlagValues,
                argv: Sequence[str], *, kind: str | None = None):
  """Defines --config or --recipe, and a flag for each of its fields.

  Args:
    name: name of the flag.
    text: its help.
    values: flags of the call.
    argv: its words.
    kind: see catalog.locate; None: as the flag is called.
  """
  config_flags.DEFINE_config_file(
      name, None, text, flag_values=values, sys_argv=list(argv))
  values[name].parser = _Config(name, argv, kind)


def texts(values: flags.FlagValues) -> Callable[..., None]:
  """(name, help, default=None) defines a flag that holds a text."""
  return lambda name, text, default=None: flags.DEFINE_string(
      name, default, text, flag_values=values)


def numbers(values: flags.FlagValues) -> Callable[..., None]:
  """(name, help, default=None, least=1) defines a flag of a whole number."""
  return lambda name, text, default=None, least=1: flags.DEFINE_integer(
      name, default, text, lower_bound=least, flag_values=values)


def switches(values: flags.FlagValues) -> Callable[..., None]:
  """(name, help, default=False) defines a flag that is on or off."""
  return lambda name, text, default=False: flags.DEFINE_bool(
      name, default, text, flag_values=values)


def cache_flag(values: flags.FlagValues):
  """Defines --compile_cache."""
  from dinojax.runs import (
    assemble,  # with jax, which a list of configs needs not
  )
  texts(values)(
      'compile_cache', 'Folder of compiled programs, so that a second start is '
      'quick; empty: none.', assemble.DEFAULT_COMPILE_CACHE)


def _overrides(name: str, argv: Sequence[str]) -> Iterator[str]:
  """Fields that flags set: 'train.batch_size' of --config.train.batch_size=1.
  """
  for word in argv[1:]:
    match = re.match(rf'--?(?:no)?{name}\.([^=]*)', word)
    if match:
      yield match.group(1)


def _check_field(config: config_dict.ConfigDict, flag: str, key: str,
                 command: str):
  """Checks that a config has a field.

  Raises:
    UserError: it does not; the message names fields that may be meant.
  """
  known = set(_keys(config))
  if (name := key.partition('[')[0]) in known:
    return
  last, leaves = name.rpartition('.')[2], {
      k for k in known if not any(o.startswith(f'{k}.') for o in known)}
  near = sorted(k for k in leaves if k.endswith(f'.{last}')) or (
      difflib.get_close_matches(name, leaves, 3, 0.6))
  hint = ' or '.join(f'--{flag}.{k}' for k in near[:3])
  raise errors.UserError(
      f'--{flag}.{key} is not a field of this {flag}: '
      + (f'did you mean {hint}? ' if near else '')
      + f'`{command} --help` lists the fields')


def _give_way(config: config_dict.ConfigDict, key: str, given: set[str]):
  """A length in one unit takes the place of the config's in another."""
  name, _, unit = key.rpartition('_')
  if unit not in config_lib.UNITS:
    return
  *path, last = name.split('.')
  section = functools.reduce(operator.getitem, path, config)
  if any(f'{last}_{other}' not in section for other in config_lib.UNITS):
    return
  for other in config_lib.UNITS:
    if f'{name}_{other}' not in given:
      section[f'{last}_{other}'] = None


def _keys(config: config_dict.ConfigDict, path: str = '') -> Iterator[str]:
  """All sections and fields."""
  for name in config:
    yield f'{path}{name}'
    if isinstance(config[name], config_dict.ConfigDict):
      yield from _keys(config[name], f'{path}{name}.')


def parse(module: types.ModuleType, command: str, argv: Sequence[str]
          ) -> tuple[flags.FlagValues, list[str]] | int:
  """The flags and words of a call; or its exit code, where that is all.

  Args:
    module: the command, see dinojax.commands.
    command: its name.
    argv: its flags and words.
  """
  given = any(re.match(r'--?config(=|$)', word) for word in argv)
  defaults = () if given else getattr(module, 'DEFAULTS', ())
  argv = configs_first([f'dinojax {command}', *defaults, *argv])
  section = _asked_for_help(argv)
  values = flags.FlagValues()
  module.define(values, argv)
  if section is not None:
    return _help(module, values, command, section)
  try:
    words = _parsed(values, argv)
    for name in getattr(module, 'REQUIRED', ()):
      if values[name].value is None:
        raise errors.UserError(f'--{name} is missing: {values[name].help}')
    _check_words(words, getattr(module, 'WORDS', ()), _usage(module))
  except (flags.Error, errors.UserError) as error:
    print(f'error: {_sentence(error, values, command, argv)}',
          file=sys.stderr)
    return 2
  if 'jax' in sys.modules:
    from dinojax.parallel import platforms
    platforms.leave_out_tpus()
  return values, words


def _usage(module: types.ModuleType) -> str:
  """The docstring as written: from Python 3.13 on __doc__ is not indented."""
  try:
    source = inspect.getsource(module)
  except (OSError, TypeError):  # a program without its source
    return module.__doc__ or ''
  return ast.get_docstring(ast.parse(source), clean=False) or ''


def _check_words(words: list[str], known: Sequence[str], usage: str):
  """Refuses words that are not known, or not as many as needed."""
  if len(words) != bool(known) or set(words) - set(known):
    examples = [line for line in usage.splitlines()
                if line.startswith('  dinojax')]
    what = (f'{" ".join(words)} is not what is to be done' if words
            else 'no word says what is to be done')
    raise errors.UserError(
        '\n'.join([f'{what}: give one of {", ".join(known)}', *examples])
        if known else
        f'unexpected arguments {" ".join(words)}: flags are written as '
        '--name=value')


def _parsed(values: flags.FlagValues, argv: Sequence[str]) -> list[str]:
  """Sets the flags; returns the other words.

  What is not of the command is a flag of all programs of absl, whose values
  the workers of the data read.
  """
  rest = flags.FLAGS(values(argv, known_only=True))
  absl_logging.use_absl_handler()
  if flags.FLAGS['verbosity'].using_default_value:
    flags.FLAGS.verbosity = absl_logging.INFO  # as absl's own start does
  return rest[1:]


def configs_first(argv: Sequence[str]) -> list[str]:
  """The same words, --config=FILE before the flags of its fields."""
  words, first = list(argv[1:]), []
  for i, word in enumerate(words):
    if re.fullmatch(r'--?(config|recipe)', word) and i + 1 < len(words):
      words[i:i + 2] = [f'{word}={words[i + 1]}', '']
  for word in words:
    if re.match(r'--?(config|recipe)=', word):
      first.append(word)
  return [*argv[:1], *first, *(w for w in words if w and w not in first)]


def _sentence(error: Exception, values: flags.FlagValues, command: str,
              argv: Sequence[str]) -> str:
  """Says what is wrong with a command line, and what may be meant."""
  if isinstance(error, flags.UnrecognizedFlagError):
    name = error.flagname
    near = difflib.get_close_matches(
        name, [f.name for f in _flags(values)], 2, 0.6)
    if re.match(r'(no)?(config|recipe)\.', name):
      kind = name.partition('.')[0].removeprefix('no')
      if kind == 'config' and any(
          re.match('--?data(=|$)', word) for word in argv[1:]):
        return (f'--{name} is a field of a config, and --data chooses one: '
                'train with it once, then change WORKDIR/config.py, or give '
                '--config=WORKDIR/config.py instead of --data, and another '
                '--workdir')
      return f'--{name} is a field of a {kind}: give --{kind}=NAME too'
    hint = (f'did you mean {" or ".join(f"--{n}" for n in near)}? '
            if near else '')
    return (f'--{name} is not a flag of `dinojax {command}`: {hint}'
            f'`dinojax {command} --help` lists them')
  if isinstance(error.__context__, errors.UserError):
    return str(error.__context__)
  return str(error).removeprefix('flag ')


def _asked_for_help(argv: Sequence[str]) -> str | None:
  """Section that --help asks about; '': everything; None: no --help."""
  for word in argv[1:]:
    if word == '--':
      break
    match = re.fullmatch(r'-h|--?help(?:=(.*))?', word)
    if match:
      return match.group(1) or ''
  return None


def _flags(values: flags.FlagValues) -> list[flags.Flag]:
  """The flags of a command, in the order in which they were defined."""
  return list({id(flag): flag for flag in map(
      values.__getitem__, values)}.values())


def _help(module: types.ModuleType, values: flags.FlagValues, command: str,
          section: str) -> int:
  """Prints it; the exit code."""
  command_flags = _flags(values)
  has_config = any(f.name == 'config' for f in command_flags)
  lines = [_usage(module).strip(), '']
  lines += [line for flag in command_flags for line in _described(flag)]
  described = getattr(module, 'settings', None)
  if described:
    from dinojax.commands import reference
    try:
      fields = reference.text(section, described())
    except errors.UserError as error:
      print(f'error: {error}', file=sys.stderr)
      return 2
    lines = [fields] if section else [*lines, '', reference.TITLE, '', fields]
  elif has_config:
    lines += ['', 'Fields of a config: `dinojax train --help`, or '
              '--help=SECTION for one section.']
  _show('\n'.join(lines))
  return 0


def _show(text: str):
  """Prints text that may be cut off by `head`."""
  try:
    print(text, flush=True)
  except BrokenPipeError:
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _described(flag: flags.Flag) -> list[str]:
  """Lines about a flag."""
  default = flag.default
  shown = '' if default in (None, '', []) else f' (default: {default})'
  choices = getattr(flag.parser, 'enum_values', None)
  words = flag.help + (f' One of {", ".join(choices)}.' if choices else '')
  head = f'  --{flag.name}' if flag.boolean else f'  --{flag.name}=…'
  first, *items = words.split(ITEM)
  wrap = lambda part, more: textwrap.wrap(
      ' '.join(part.split()), _WIDTH, initial_indent=' ' * _INDENT,
      subsequent_indent=' ' * (_INDENT + more))
  return [head + shown, *wrap(first, 0),
          *(line for item in items for line in wrap(item, 2))]
