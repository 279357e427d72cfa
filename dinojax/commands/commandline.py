"""How every command reads its flags: help, names of configs, mistakes.

A mistake is one sentence on stderr and exit code 2, never a traceback.
"""

from collections.abc import Callable, Iterator, Sequence
import difflib
import functools
import operator
import os
import re
import sys
import textwrap

from absl import app
from absl import flags
from ml_collections import config_dict
from ml_collections import config_flags

from dinojax.core import config as config_lib
from dinojax.core import errors
from dinojax.runs import catalog

# Flags that `config_flag` defines belong to the module that calls it.
flags.disclaim_key_flags()
_NONE = ('None', 'none')
_WIDTH, _INDENT = 80, 6


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

  def __init__(self, name: str):
    self.name = name

  def parse(self, path):
    """The config, locked.

    Raises:
      UserError: no such config or field, with what may be meant.
    """
    config = catalog.load(path, self.name)
    given = set(_overrides(self.name, sys.argv))
    for key in given:
      _check_field(config, self.name, key)
    for key in given:
      _give_way(config, key, given)
    return config.lock()

  def flag_type(self):
    """Name of the type, for absl."""
    return 'config'


def config_flag(name: str, text: str) -> flags.FlagHolder:
  """Defines --config or --recipe, and a flag for each of its fields."""
  holder = config_flags.DEFINE_config_file(name, None, text)
  flags.FLAGS[name].parser = _Config(name)
  return holder


def _overrides(name: str, argv: Sequence[str]) -> Iterator[str]:
  """Fields that flags set: 'train.batch_size' of --config.train.batch_size=1.
  """
  for word in argv[1:]:
    match = re.match(rf'--?(?:no)?{name}\.([^=]*)', word)
    if match:
      yield match.group(1)


def _check_field(config: config_dict.ConfigDict, flag: str, key: str):
  """Whether a config has a field.

  Raises:
    UserError: it has not, with the fields that may be meant.
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
      + '`dinojax train --help` lists the fields')


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


def run(main: Callable, command: str, *, required: Sequence[str] = ()):
  """Runs a command: reads its flags, and ends the process with its code.

  Args:
    main: of the remaining arguments; its module's flags are the command's.
    command: after `dinojax`.
    required: flags that must be given.
  """
  app.run(lambda argv: _guarded(main, argv), flags_parser=lambda argv: parse(
      argv, main.__module__, command, required))


def _guarded(main: Callable, argv: list[str]) -> int:
  if 'jax' in sys.modules:
    from dinojax.parallel import platforms
    platforms.leave_out_tpus()
  try:
    return main(argv)
  except app.UsageError as error:
    print(f'error: {error}', file=sys.stderr)
    return 2


def parse(argv: list[str], module: str, command: str,
          required: Sequence[str]) -> list[str]:
  """Arguments that are no flags; ends the process at help or a mistake."""
  text = _asked_for_help(argv)
  if text is not None:
    sys.exit(_help(module, command, text))
  sys.argv = argv = configs_first(argv)
  try:
    rest = flags.FLAGS(argv)
    for name in required:
      if flags.FLAGS[name].value is None:
        raise errors.UserError(
            f'--{name} is missing: {flags.FLAGS[name].help}')
  except (flags.Error, errors.UserError) as error:
    print(f'error: {_sentence(error, module, command)}', file=sys.stderr)
    sys.exit(2)
  return rest


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


def _sentence(error: Exception, module: str, command: str) -> str:
  """What is wrong, and what may be meant."""
  if isinstance(error, flags.UnrecognizedFlagError):
    name = error.flagname
    near = difflib.get_close_matches(
        name, [f.name for f in _flags(module)], 2, 0.6)
    if re.match(r'(no)?(config|recipe)\.', name):
      kind = name.partition('.')[0].removeprefix('no')
      if kind == 'config' and any(
          re.match('--?data(=|$)', word) for word in sys.argv[1:]):
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
  """What help was asked about: '' is everything; None: it was not."""
  for word in argv[1:]:
    if word == '--':
      break
    match = re.fullmatch(r'-h|--?help(?:=(.*))?', word)
    if match:
      return match.group(1) or ''
  return None


def _flags(module: str) -> list[flags.Flag]:
  """The flags that a module defines, and for its config."""
  return flags.FLAGS.get_flags_for_module(sys.modules[module])


def _help(module: str, command: str, section: str) -> int:
  """Prints it; the exit code."""
  own = _flags(module)
  has_config = any(f.name == 'config' for f in own)
  lines = [(sys.modules[module].__doc__ or '').strip(), '']
  lines += [line for flag in own for line in _described(flag)]
  if command == 'train':
    from dinojax.commands import reference
    try:
      fields = reference.text(section)
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
  return [head + shown, *textwrap.wrap(
      ' '.join(words.split()), _WIDTH, initial_indent=' ' * _INDENT,
      subsequent_indent=' ' * _INDENT)]
