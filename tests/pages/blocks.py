"""The code of README and docs: what its fences hold, and what is named inline.

A fence says what it is: `sh` is run by bash, `python` by Python, `text` is only
looked at; MyST's directives are in braces.
"""

from collections.abc import Iterator
import dataclasses
import pathlib
import re
import shlex

ROOT = pathlib.Path(__file__).parents[2]
PAGES = [ROOT / 'README.md', ROOT / 'CONTRIBUTING.md',
         *sorted((ROOT / 'docs').glob('*.md'))]
LANGUAGES = ('sh', 'python', 'text')
_FENCE = re.compile(r'^```([^\n]*)\n(.*?)^```$', re.DOTALL | re.MULTILINE)


@dataclasses.dataclass(frozen=True)
class Block:
  """The code between two fences.

  Attributes:
    language: what the fence says.
    text: its lines.
    line: number of its first line in the page.
  """

  language: str
  text: str
  line: int

  @property
  def file(self) -> str:
    """Name of the file that it is, by the first words of its docstring."""
    match = re.match(r'"""(\w+\.py): ', self.text)
    return match[1] if match else ''


def of_page(path: pathlib.Path) -> list[Block]:
  """The blocks of a page, in order."""
  text = path.read_text()
  return [Block(match[1], match[2], text[:match.start(2)].count('\n') + 1)
          for match in _FENCE.finditer(text)]


def inline(path: pathlib.Path) -> Iterator[str]:
  """What stands between single backticks, line breaks taken out."""
  for text in re.findall(r'(?<!`)`([^`]+)`', _FENCE.sub('', path.read_text())):
    yield ' '.join(text.split())


def commands(path: pathlib.Path, program: str = 'dinojax'
             ) -> Iterator[list[str]]:
  """The calls of a program in a page, as words without its name."""
  lines = [*inline(path)]
  for block in of_page(path):
    if block.language == 'sh':
      lines += block.text.replace('\\\n', ' ').splitlines()
  for line in lines:
    line = line.strip().replace('python -m dinojax.main', 'dinojax train')
    if line.startswith(f'{program} '):
      yield shlex.split(line.partition(' #')[0])[len(program.split()):]
