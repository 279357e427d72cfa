"""Configs by name: those that come with dinojax, and files of one's own.

`vits` is a config of the package, wherever a command is given; what ends in
.py or holds a slash is a file. `:WORDS` may follow either.
"""

import ast
import dataclasses
import difflib
import importlib.util
import os
import pathlib
import traceback
from typing import Any

from ml_collections import config_dict

from dinojax.core import config as config_lib
from dinojax.core import errors
from dinojax.core import paths

FOLDER = pathlib.Path(__file__).parents[1] / 'configs'
_SHARED = ('__init__', 'common')


@dataclasses.dataclass(frozen=True)
class Kind:
  """A kind of config.

  Attributes:
    words: how a sentence calls it.
    usage: call that takes it, but for its name.
    folder: folder of those that come with dinojax, below FOLDER.
    rest: end of the call.
  """

  words: str
  usage: str
  folder: str
  rest: str = '--workdir=runs/{stem}'


KINDS = {
    'config': Kind('config', 'dinojax train --config=', '.'),
    'recipe': Kind('recipe', 'dinojax train --recipe=', 'recipes'),
    'evaluation': Kind('config of evaluations', 'dinojax evaluate --config=',
                       'evals', '--suite=quick --model=RUN'),
    'curation': Kind('config of curation', 'dinojax curate --config=',
                     'curate', '--workdir=DIR')}


def configs() -> dict[str, pathlib.Path]:
  """Files of single runs by name."""
  return files('config')


def recipes() -> dict[str, pathlib.Path]:
  """Files of chains of runs by name."""
  return files('recipe')


def files(kind: str) -> dict[str, pathlib.Path]:
  """Files of one of KINDS by name."""
  return _files(FOLDER / KINDS[kind].folder)


def _files(folder: pathlib.Path) -> dict[str, pathlib.Path]:
  return {path.stem: path for path in sorted(folder.glob('*.py'))
          if path.stem not in _SHARED}


def summary(path: pathlib.Path) -> str:
  """The first line of a file's docstring; nothing of it is run."""
  text = ast.get_docstring(ast.parse(path.read_text())) or ''
  return (text.splitlines() or [''])[0]


def listing() -> str:
  """A line for each config and each recipe."""
  lines = []
  for name, kind in KINDS.items():
    lines += [f'{kind.usage}NAME', *(
        f'  {name:16}  {summary(path)}'
        for name, path in files(name).items()), '']
  return '\n'.join([
      *lines, 'NAME:smoke runs the same code in seconds. '
      '`dinojax configs --copy=NAME --out=mine.py`', 'writes one to start '
      'from, `dinojax train --help` says what its fields mean.'])


def locate(name: str, flag: str = 'config', *,
           typed: str | None = None) -> pathlib.Path:
  """The file that a name or path means.

  Args:
    name: without words.
    flag: one of KINDS, which is meant.
    typed: flag that it was given to, for messages; None: the same.

  Raises:
    UserError: there is none, with those that there are.
  """
  typed, known = typed or flag, files(flag)
  if name in known:
    return known[name]
  if name.endswith('.py') or '/' in name or os.sep in name:
    path = pathlib.Path(paths.expand(name))
    if path.is_file():
      return path
    stem, what = path.stem, 'is not a file'
  else:
    stem, what = name, f'is not a {KINDS[flag].words} that comes with dinojax'
  for other in KINDS.keys() - {flag}:
    if stem in files(other):
      raise errors.UserError(
          f'--{typed}={name} {what}; {stem} is a {KINDS[other].words}: '
          f'`{KINDS[other].usage}{stem}`')
  near = [stem] if stem in known else difflib.get_close_matches(stem, known)
  hint = f': did you mean --{typed}={" or ".join(near)}?' if near else '.'
  raise errors.UserError(
      f'--{typed}={name} {what}{hint} Those that come with dinojax are '
      f'{", ".join(known)}; a file of your own is given by its path, such as '
      'mine.py')


def copy(name: str, out: str | None) -> str:
  """Writes a config as a file of one's own; the line to say of it.

  Raises:
    UserError: no such config, or the file is there or cannot be written.
  """
  bare = name.removesuffix('.py')
  which = next((kind for kind in KINDS if bare in files(kind)), None)
  name, kind = bare if which else name, KINDS[which or 'config']
  text = locate(name, which or 'config', typed='copy').read_text()
  if not out:
    raise errors.UserError(
        f'--copy={name} needs --out=FILE, such as --out=mine.py')
  path = pathlib.Path(paths.expand(out))
  if path.suffix != '.py':
    raise errors.UserError(f'--out={out} must end in .py')
  flag = kind.usage.rpartition(' ')[2]
  text = text.replace(f'{flag}{name}', f'{flag}{out}')
  try:
    with path.open('x') as file:
      file.write(text)
  except FileExistsError as error:
    raise errors.UserError(
        f'--out={out} exists: give another name, or remove it') from error
  except OSError as error:
    raise errors.UserError(
        f'--out={out} cannot be written: {error.strerror}') from error
  return f'wrote {out}: {kind.usage}{out} {kind.rest.format(stem=path.stem)}'


def load(text: str, flag: str = 'config', *,
         kind: str | None = None) -> config_dict.ConfigDict:
  """Runs the file of a config and returns the result of its get_config.

  Args:
    text: name or path, with `:WORDS` or without.
    flag: flag that it was given to, 'config' or 'recipe'.
    kind: see `locate`; None: as the flag is called.

  Raises:
    UserError: no such file, or it ends in an error, with its line.
  """
  name, colon, words = text.partition(':')
  path = locate(name, kind or flag, typed=flag)
  try:
    spec = importlib.util.spec_from_file_location(f'{flag}_{path.stem}', path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    config = module.get_config(*((words,) if colon else ()))
  except errors.UserError as error:
    raise errors.UserError(f'--{flag}={text}: {error}') from error
  except Exception as error:  # the file is a program of the user's
    raise errors.UserError(
        f'--{flag}={text}: {_place(path, error)}{type(error).__name__}: '
        f'{error}') from error
  return _checked(config, f'--{flag}={text}')


def _checked(config: Any, named: str) -> config_dict.ConfigDict:
  if isinstance(config, config_dict.ConfigDict):
    return config
  if isinstance(config, dict):
    return config_dict.ConfigDict(config)
  raise errors.UserError(
      f'{named}: get_config returns {config_lib.shown(config)}; it must return '
      'a config, as those of `dinojax configs` do')


def _place(path: pathlib.Path, error: Exception) -> str:
  """Where in the file an error came up: 'mine.py, line 3: '."""
  if isinstance(error, SyntaxError):
    return f'{error.filename}, line {error.lineno}: '
  lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__)
           if frame.filename == str(path)]
  return f'{path}, line {lines[-1]}: ' if lines else ''
