"""Texts as rows of ids: by CLIP's vocabulary, any JSON, or one of one's own.

The id of the end is the largest of all, so that a text tower finds the end of
a text by it. What is written in a text never gives that id.
"""

from collections.abc import Iterable, Iterator, Sequence
import hashlib
from typing import Protocol

from etils import epath
import numpy as np

from dinojax.core import atomic
from dinojax.core import errors
from dinojax.core import lists
from dinojax.core import paths
from dinojax.data import clip_words
from dinojax.data import text_packages

CONTEXT = 77
MARKERS = clip_words.MARKERS
_BYTES = 256
KINDS = ('clip:FILE', 'json:FILE')


class Vocabulary(Protocol):
  """Ids of texts; picklable.

  Attributes:
    num_ids: ids; the last two are of the beginning and of the end.
    digest: hash that differs where ids do.
  """

  num_ids: int
  digest: str

  def ids(self, text: str, *, markers: bool = False) -> Iterable[int]:
    """Ids of a text, without those of its beginning and end."""

  def text(self, ids: Sequence[int]) -> str:
    """The text that ids stand for."""


class Tokenizer:
  """Texts to rows of ids; picklable.

  Attributes:
    spec: as it was opened.
    context: ids of a row.
    num_ids: ids of the vocabulary, for tower.Config.vocabulary.
    digest: hash of the vocabulary and of the length of the rows.
  """

  def __init__(self, vocabulary: Vocabulary, context: int = CONTEXT,
               spec: str = ''):
    """Keeps a vocabulary.

    Raises:
      UserError: rows that are too short for a beginning and an end.
    """
    if context < 3:
      raise errors.UserError(
          f'a text of {context} ids has no room between its beginning and its '
          f'end: take more, such as {CONTEXT}')
    self.vocabulary, self.context, self.spec = vocabulary, context, spec
    self.num_ids = vocabulary.num_ids
    self.start, self.end = self.num_ids - 2, self.num_ids - 1
    self.digest = hashlib.sha256(
        f'{context} {self.num_ids} {vocabulary.digest}'.encode()
    ).hexdigest()[:16]

  def encode(self, texts: Sequence[str], *, markers: bool = False
             ) -> np.ndarray:
    """[n, context] int32 ids: beginning, text, end, and zeros.

    What is too long is cut, with the end in the last place. An empty text is
    a beginning and an end.

    Args:
      texts: n texts.
      markers: see clip_words.ClipWords.ids.
    """
    out = np.zeros((len(texts), self.context), np.int32)
    for row, text in zip(out, texts, strict=True):
      ids = [self.start]
      for i in self.vocabulary.ids(text, markers=markers):
        ids.append(i)
        if len(ids) == self.context - 1:
          break
      ids.append(self.end)
      row[:len(ids)] = ids
    return out

  def decode(self, ids: Sequence[int]) -> str:
    """The text of a row of ids, up to its end."""
    out = []
    for i in map(int, ids):
      if i == self.end:
        break
      if i != self.start:
        out.append(i)
    return self.vocabulary.text(out)


class JsonWords:
  """A vocabulary of the library `tokenizers`, of whatever kind; picklable.

  Where its last two ids are MARKERS, these begin and end texts. Otherwise two
  ids after its own do: its own marks, such as [CLS], are not used.
  """

  def __init__(self, content: str):
    """Takes the text of a JSON file.

    Raises:
      UserError: the package is missing, or it is no such file.
    """
    self._content = content
    library = text_packages.package('tokenizers')
    try:
      self._tokenizer = library.Tokenizer.from_str(content)
    except Exception as error:  # the library raises nothing narrower
      raise errors.UserError(
          f'it is no vocabulary of the library tokenizers ({error}): give the '
          'tokenizer.json of a model') from error
    self._tokenizer.no_truncation()
    self._tokenizer.no_padding()
    # Marks that are written in a text are words like others.
    self._tokenizer.encode_special_tokens = True
    known = self._tokenizer.get_vocab(with_added_tokens=True)
    last = max(known.values(), default=-1)
    has_markers = [known.get(name) for name in MARKERS] == [last - 1, last]
    self.num_ids = last + 1 if has_markers else last + 3
    self.digest = hashlib.sha256(content.encode()).hexdigest()

  def __reduce__(self):
    return JsonWords, (self._content,)

  def ids(self, text: str, *, markers: bool = False) -> Iterable[int]:
    """Ids of a text, see Vocabulary; `markers` changes nothing."""
    del markers
    return self._tokenizer.encode(
        clip_words.encodable(text), add_special_tokens=False).ids

  def text(self, ids: Sequence[int]) -> str:
    """The text that ids stand for."""
    return self._tokenizer.decode(list(ids))


def open_tokenizer(spec: str, context: int = CONTEXT) -> Tokenizer:
  """Opens a tokenizer.

  Args:
    spec: clip:FILE, the vocabulary of CLIP; json:FILE, the tokenizer.json of
      any model, or what `train` wrote.
    context: ids of a row.

  Raises:
    UserError: another spec, no such file, or a package is missing.
  """
  kind, _, file = spec.partition(':')
  if kind == 'clip' and file:
    return Tokenizer(clip_words.read(file), context, spec)
  if kind != 'json' or not file:
    raise errors.UserError(
        f'tokenizer {spec!r} is not known: give {" or ".join(KINDS)}')
  content = lists.text(epath.Path(paths.expand(file)))
  try:
    return Tokenizer(JsonWords(content), context, spec)
  except errors.UserError as error:
    raise errors.UserError(f'{spec}: {error}') from error


def train(texts: Iterable[str], num_ids: int) -> str:
  """A vocabulary of pieces that are frequent in texts, as JSON.

  Bytes are merged, so that it knows every text. The same texts give the same
  vocabulary, in whatever order they come.

  Args:
    texts: captions.
    num_ids: ids at most, of the beginning and the end as well.

  Raises:
    UserError: fewer ids than bytes, or no text; the package is missing.
  """
  if num_ids < _BYTES + len(MARKERS):
    raise errors.UserError(
        f'a vocabulary of {num_ids} ids has none for some bytes: take '
        f'{_BYTES + len(MARKERS)} or more, such as 8192')
  library = text_packages.package('tokenizers')
  out = library.Tokenizer(library.models.BPE())
  split = library.pre_tokenizers.ByteLevel(add_prefix_space=True)
  out.pre_tokenizer, out.decoder = split, library.decoders.ByteLevel()
  out.normalizer = library.normalizers.Sequence([
      library.normalizers.NFC(),
      library.normalizers.Replace(library.Regex(r'\s+'), ' '),
      library.normalizers.Strip(), library.normalizers.Lowercase()])
  count = 0

  def counted() -> Iterator[str]:
    nonlocal count
    for text in texts:
      count += bool(text.strip())
      yield clip_words.encodable(text)

  out.train_from_iterator(counted(), library.trainers.BpeTrainer(
      vocab_size=num_ids - len(MARKERS), show_progress=False,
      initial_alphabet=split.alphabet()))
  if not count:
    raise errors.UserError(
        'there is no text to learn a vocabulary from: give captions')
  out.add_special_tokens(list(MARKERS))
  return out.to_str()


def write(content: str, file: str):
  """Writes a vocabulary that `train` gave.

  Raises:
    UserError: it cannot be written.
  """
  path = epath.Path(paths.expand(file))
  try:
    path.parent.mkdir(parents=True, exist_ok=True)
    atomic.write_text(path, content)
  except OSError as error:
    raise errors.cannot_write(str(path), error) from error
