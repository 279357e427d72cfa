"""Sentences in which names of classes are put, for classes as texts."""

from collections.abc import Sequence
import re

from etils import epath

from dinojax.core import errors
from dinojax.core import lists
from dinojax.core import paths
from dinojax.core import text

MARK = '{}'  # place of a name
SENTENCES = (
    'a {}.', 'this is a {}.', 'an image of a {}.', 'one {}, seen from nearby.',
    'a {} far away in the scene.', 'there is a {} here.',
    'a {} among other things.')


def sentences(file: str | None) -> tuple[str, ...]:
  """Sentences of a file, a line each; None: SENTENCES.

  Raises:
    UserError: no such file, or a line without a place for a name.
  """
  if file is None:
    return SENTENCES
  lines = lists.lines(epath.Path(paths.expand(file)))
  wrong = [line for line in lines if line.count(MARK) != 1]
  if wrong or not lines:
    raise errors.UserError(
        f'{file} has {len(wrong)} lines without one {MARK} for the name '
        f'({text.listed(wrong)}): write a sentence a line, such as '
        f'{SENTENCES[2]}' if wrong else f'{file} is empty: write a sentence a '
        f'line, such as {SENTENCES[2]}')
  return tuple(lines)


def names(file: str | None, classes: Sequence[str], spec: str
          ) -> tuple[str, ...]:
  """Names of classes as they are said in texts.

  Args:
    file: a name a line, in the order of the classes; None: their own names,
      with blanks for _ and -.
    classes: names in the set.
    spec: the set, for messages.

  Raises:
    UserError: another number of names, or an empty one.
  """
  if file is None:
    out = [' '.join(name.replace('_', ' ').replace('-', ' ').split())
           for name in classes]
    if not all(out) or all(re.fullmatch(r'class \d+', name) for name in out):
      raise errors.UserError(
          f'{spec} has classes without names that can be said '
          f'({text.listed(out)}): write classes.txt beside it, or give names, '
          'a line each, in a file')
    return tuple(out)
  lines = lists.lines(epath.Path(paths.expand(file)))
  if len(lines) != len(classes):
    raise errors.UserError(
        f'{file} has {len(lines)} names, and {spec} {len(classes)} classes: '
        'give a line for each')
  return tuple(lines)
