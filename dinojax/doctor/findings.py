"""Findings of checks: how bad things are, in words, and what to do."""

from collections.abc import Iterable, Sequence
import dataclasses
import textwrap

from dinojax.core import text as text_lib

LEVELS = ('ok', 'skip', 'warn', 'error')
_WIDTH = 80
_NAME = 20  # columns of the longest name
_INDENT = 2 + max(map(len, LEVELS)) + 2 + _NAME + 1


@dataclasses.dataclass(frozen=True)
class Finding:
  """One line of a report.

  Attributes:
    level: one of LEVELS; 'skip' is what was not looked at, and why.
    name: name of the check.
    text: result of the check, in words.
    fix: advice on what to do, empty where nothing is wrong.
  """

  level: str
  name: str
  text: str
  fix: str = ''


def ok(name: str, text: str) -> Finding:
  """Nothing to do."""
  return Finding('ok', name, text)


def skip(name: str, reason: str) -> Finding:
  """Not looked at."""
  return Finding('skip', name, reason)


def warn(name: str, text: str, fix: str) -> Finding:
  """Works, but not well."""
  return Finding('warn', name, text, fix)


def error(name: str, text: str, fix: str = '') -> Finding:
  """Does not work."""
  return Finding('error', name, text, fix)


def count(findings: Iterable[Finding]) -> tuple[int, int]:
  """(errors, warnings)."""
  levels = [finding.level for finding in findings]
  return levels.count('error'), levels.count('warn')


def summary(findings: Iterable[Finding]) -> str:
  """'1 error, 2 warnings'."""
  return ', '.join(
      f'{number} {word}{"" if number == 1 else "s"}' for number, word
      in zip(count(findings), ('error', 'warning'), strict=True))


def table(title: str, findings: Sequence[Finding]) -> str:
  """Aligned columns of 80 characters, to be pasted anywhere."""
  return '\n'.join([title, *(_row(finding) for finding in findings)])


def _row(finding: Finding) -> str:
  head = f'  {finding.level:5}  {finding.name:{_NAME}} '
  lines = _wrapped(finding.text) + (
      _wrapped(f'fix: {finding.fix}') if finding.fix else [])
  return ('\n' + ' ' * _INDENT).join([head + lines[0], *lines[1:]])


def _wrapped(text: str) -> list[str]:
  """Never broken inside a word: paths and flags are to be copied."""
  return textwrap.wrap(
      text_lib.printable(' '.join(text.split())), _WIDTH - _INDENT,
      break_long_words=False, break_on_hyphens=False) or ['']
