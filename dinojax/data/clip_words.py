"""CLIP's vocabulary: words in pieces, which frequent pairs were merged to.

Source: Radford et al., "Learning Transferable Visual Models From Natural
  Language Supervision" (arXiv 2103.00020).
"""

from collections.abc import Iterator, Sequence
import functools
import gzip
import hashlib
import html
import zlib

from etils import epath

from dinojax.core import errors
from dinojax.core import paths
from dinojax.data import text_packages

FILE = 'bpe_simple_vocab_16e6.txt.gz'
SHA256 = '924691ac288e54409236115652ad4aa250f48203de50a9e4722a6ecd48d6804a'
MARKERS = '<|startoftext|>', '<|endoftext|>'
_NUM_MERGES = 48_894  # the file has more
_WHERE = (f'it is {FILE}, which lies in the folder open_clip of the wheel '
          'open_clip_torch on PyPI (MIT licence)')
_END = '</w>'  # of a word
# Endings of English, words, single digits, and runs of other signs.
_WORDS = r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
_CACHED_WORDS = 2**18


class ClipWords:
  """A vocabulary of CLIP's form; picklable.

  Attributes:
    num_ids: ids, the last two of which begin and end a text.
    num_tokens: texts that ids stand for; two ids may stand for the same.
    digest: hash of the merges.
  """

  def __init__(self, merges: Sequence[str]):
    """Takes merges.

    Args:
      merges: two pieces with a blank between, the first merge first.

    Raises:
      UserError: a package is missing, or a line is no merge.
    """
    self._merges = tuple(merges)
    pairs = [tuple(line.split()) for line in merges]
    wrong = next((i for i, pair in enumerate(pairs) if len(pair) != 2), None)
    if wrong is not None:
      raise errors.UserError(
          f'merge {wrong + 1} of the vocabulary, {merges[wrong][:40]!r}, is no '
          'pair of pieces with a blank between: give another file')
    letters = list(_letters().values())
    self._tokens = [*letters, *(letter + _END for letter in letters),
                    *map(''.join, pairs), *MARKERS]
    # Of a text that occurs twice the last id counts.
    self._ids = {token: i for i, token in enumerate(self._tokens)}
    self.num_ids, self.num_tokens = len(self._tokens), len(self._ids)
    self.digest = hashlib.sha256('\n'.join(merges).encode()).hexdigest()
    # Merges of pieces that nothing makes never come about.
    self._model = text_packages.package('tokenizers').models.BPE(
        vocab=self._ids, end_of_word_suffix=_END, merges=[
            pair for pair in pairs
            if all(piece in self._ids for piece in pair)])
    self._cache: dict[str, list[int]] = {}

  def __reduce__(self):
    return ClipWords, (self._merges,)

  def ids(self, text: str, *, markers: bool = False) -> Iterator[int]:
    """Yields the ids of a text, without those of its beginning and end.

    Args:
      text: any text.
      markers: True takes MARKERS that are written in it for what they mean, as
        CLIP does; False for signs and words like others.
    """
    for match in _pattern(markers).finditer(cleaned(text)):
      word = match[0]
      if markers and word in MARKERS:
        yield self._ids[word]
      else:
        yield from self._pieces(word)

  def text(self, ids: Sequence[int]) -> str:
    """The text that ids stand for, a blank after every word."""
    numbers = {letter: byte for byte, letter in _letters().items()}
    data = bytes(numbers[letter] for i in ids for letter in self._tokens[i])
    return data.decode('utf-8', 'replace').replace(_END, ' ')

  def _pieces(self, word: str) -> list[int]:
    """Ids of the pieces of a word; those of many words are kept."""
    known = self._cache.get(word)
    if known is None:
      letters = ''.join(_letters()[byte] for byte in word.encode())
      known = [piece.id for piece in self._model.tokenize(letters)]
      if len(self._cache) < _CACHED_WORDS:
        self._cache[word] = known
    return known


def read(file: str) -> ClipWords:
  """The vocabulary of CLIP.

  Args:
    file: path of the file as it is published.

  Raises:
    UserError: it is not there or another one, or a package is missing.
  """
  path = epath.Path(paths.expand(file))
  try:
    data = path.read_bytes()
  except OSError as error:
    raise errors.UserError(
        f'the vocabulary {path} cannot be read ({error.strerror or error}): '
        f'{_WHERE}') from error
  digest = hashlib.sha256(data).hexdigest()
  if digest != SHA256:
    raise errors.UserError(
        f'{path} is not the vocabulary of CLIP: its sha256 is {digest} and not '
        f'{SHA256}; {_WHERE}')
  try:
    lines = gzip.decompress(data).decode().splitlines()
  except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
    raise errors.UserError(f'{path} is damaged ({error}): {_WHERE}') from error
  return ClipWords(lines[1:1 + _NUM_MERGES])


def cleaned(text: str) -> str:
  """A text as CLIP reads it: mended, without HTML's signs, in small letters."""
  text = text_packages.package('ftfy').fix_text(text)
  text = html.unescape(html.unescape(text))
  return ' '.join(encodable(text).split()).lower()


def encodable(text: str) -> str:
  """A text without halves of signs, which JSON may hold and UTF-8 not."""
  return text.encode('utf-8', 'replace').decode()


@functools.cache
def _pattern(markers: bool):
  regex = text_packages.package('regex')
  words = '|'.join((*map(regex.escape, MARKERS), _WORDS)) if (
      markers) else _WORDS
  return regex.compile(words, regex.IGNORECASE)


@functools.cache
def _letters() -> dict[int, str]:
  """A visible letter for every byte, in the order of their ids."""
  visible = [*range(ord('!'), ord('~') + 1), *range(ord('¡'), ord('¬') + 1),
             *range(ord('®'), ord('ÿ') + 1)]
  hidden = [byte for byte in range(256) if byte not in visible]
  return {byte: chr(byte) for byte in visible} | {
      byte: chr(256 + i) for i, byte in enumerate(hidden)}
