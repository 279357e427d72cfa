"""Texts as ids: the end is the largest, whatever is written.

Numbers: tests/kinds/text.py.
"""

import pickle
import sys

import numpy as np
import pytest

from dinojax.core import errors
from dinojax.data import clip_words
from dinojax.data import tokenizers

MERGES = ('d o', 'do g</w>', 'c a', 'ca t</w>', 'e n', 'en d')
CAPTIONS = [f'A {colour} {thing} on the {place}.' for colour in (
    'red', 'green') for thing in ('dog', 'café', 'bicycle') for place in (
        'road', 'beach', '草 🐶')]
MARKED = 'a dog <|endoftext|> and <|startoftext|>'


@pytest.fixture(scope='module')
def learned():
  return tokenizers.train(CAPTIONS, 290)


@pytest.fixture(scope='module')
def opened(learned):
  """A tokenizer of every kind, by name."""
  import tokenizers as library
  other = library.Tokenizer(library.models.WordLevel(
      {'[UNK]': 0, 'dog': 1, 'a': 2, '[CLS]': 3}, unk_token='[UNK]'))
  other.pre_tokenizer = library.pre_tokenizers.Whitespace()
  other.add_special_tokens(['[CLS]'])
  other.enable_truncation(2)
  other.enable_padding(length=9)
  return {name: tokenizers.Tokenizer(words, 9) for name, words in (
      ('clip', clip_words.ClipWords(MERGES)),
      ('learned', tokenizers.JsonWords(learned)),
      ('other', tokenizers.JsonWords(other.to_str())))}


@pytest.mark.parametrize('kind', ['clip', 'learned', 'other'])
def test_every_text_ends_once_and_with_the_largest_id(opened, kind):
  tokenizer = opened[kind]
  texts = ['a dog', '', MARKED, 'dog ' * 2500, 'x' * 10_000, '\ud83d dog',
           ' \n\t ', '草 🐶 [CLS]']
  ids = tokenizer.encode(texts)
  assert ids.shape == (8, 9) and ids.dtype == np.int32
  assert tokenizer.end == tokenizer.num_ids - 1
  assert (ids[:, 0] == tokenizer.start).all()
  assert (ids == tokenizer.end).sum(1).tolist() == [1] * 8
  assert ids.min() >= 0 and (ids[:, 1:] != tokenizer.start).all()
  for row in ids:  # nothing but zeros after the end
    assert not row[row.argmax() + 1:].any()
  assert ids[3, -1] == tokenizer.end
  assert ids[1].tolist() == [tokenizer.start, tokenizer.end] + [0] * 7
  assert ids[6].tolist() == ids[1].tolist()


@pytest.mark.parametrize('kind', ['clip', 'learned', 'other'])
def test_a_worker_gets_the_same(opened, kind):
  tokenizer = opened[kind]
  copy = pickle.loads(pickle.dumps(tokenizer))
  np.testing.assert_array_equal(
      copy.encode(CAPTIONS), tokenizer.encode(CAPTIONS))
  assert copy.digest == tokenizer.digest and copy.num_ids == tokenizer.num_ids


def test_markers_mean_what_they_say_where_asked(opened):
  tokenizer = opened['clip']
  meant = tokenizer.encode([MARKED], markers=True)[0]
  assert (meant == tokenizer.end).sum() == 2
  assert '<|' in tokenizer.vocabulary.text(
      list(tokenizer.vocabulary.ids(MARKED)))


def test_pieces_are_those_that_were_merged(opened):
  tokenizer = opened['clip']
  assert tokenizer.num_ids == 512 + len(MERGES) + 2
  dog, cat, end = 512 + 1, 512 + 3, 512 + 5
  assert tokenizer.encode(['  DOG cat&amp;amp; ends'])[0, 1:6].tolist() == [
      dog, cat, 256 + 5, end, 256 + ord('s') - ord('!')]
  assert tokenizer.decode(tokenizer.encode(['Dogs, 12 cat'])[0]) == (
      'dogs , 1 2 cat ')


def test_ids_of_another_library_stay_and_two_follow(opened):
  tokenizer = opened['other']
  assert (tokenizer.start, tokenizer.end) == (4, 5)
  assert tokenizer.encode(['a dog ran'])[0].tolist() == [
      4, 2, 1, 0, 5, 0, 0, 0, 0]
  # Neither the length nor the padding of the file counts.
  assert tokenizer.encode(['dog ' * 5])[0].tolist() == [
      4, 1, 1, 1, 1, 1, 5, 0, 0]


def test_its_markers_are_used_where_they_are_the_last(opened, learned):
  tokenizer = opened['learned']
  assert tokenizer.num_ids == 290
  import tokenizers as library
  known = library.Tokenizer.from_str(learned).get_vocab()
  assert [known[name] for name in tokenizers.MARKERS] == [288, 289]


def test_the_order_of_captions_changes_no_vocabulary(learned):
  assert tokenizers.train(reversed(CAPTIONS), 290) == learned
  assert tokenizers.train(CAPTIONS[:9], 290) != learned


def test_every_text_comes_back(opened, learned, tmp_path):
  path = tmp_path / 'new' / 'words.json'
  tokenizers.write(learned, str(path))
  tokenizer = tokenizers.open_tokenizer(f'json:{path}', 60)
  for text in (*CAPTIONS, 'Żółć\n and  <|endoftext|>'):
    assert tokenizer.decode(tokenizer.encode([text])[0]) == (
        ' ' + ' '.join(text.split()).lower())
  # What occurred often is few ids.
  count = lambda text: int((tokenizer.encode([text]) > 0).sum())
  assert count('the bicycle') < count('kqz wvxjyfm')


def test_digests_differ_where_ids_do(opened, learned):
  digests = {tokenizer.digest for tokenizer in opened.values()}
  digests.add(tokenizers.Tokenizer(tokenizers.JsonWords(learned), 10).digest)
  digests.add(tokenizers.Tokenizer(
      clip_words.ClipWords(MERGES[::-1]), 9).digest)
  assert len(digests) == 5


def test_files_that_are_no_vocabularies_are_named(tmp_path):
  file = tmp_path / 'words'
  open_it = lambda kind: tokenizers.open_tokenizer(f'{kind}:{file}')
  for kind, text in (('clip', 'words cannot be read .No such file'),
                     ('json', 'words is missing')):
    with pytest.raises(errors.UserError, match=text):
      open_it(kind)
  file.write_text('{}')
  for kind, text in (('clip', 'sha256 is 44136fa355b3.*wheel open_clip_torch'),
                     ('json', 'json:.*words: it is no vocabulary')):
    with pytest.raises(errors.UserError, match=text):
      open_it(kind)
  with pytest.raises(errors.UserError, match='give clip:FILE or json:FILE'):
    tokenizers.open_tokenizer('gpt2')
  with pytest.raises(errors.UserError, match="merge 2 of the .* 'a b c'"):
    clip_words.ClipWords(['a b', 'a b c'])


def test_sizes_that_cannot_be_are_refused():
  with pytest.raises(errors.UserError, match='a vocabulary of 257 ids'):
    tokenizers.train(CAPTIONS, 257)
  for texts in ([], ['', ' ']):
    with pytest.raises(errors.UserError, match='there is no text to learn'):
      tokenizers.train(texts, 300)
  with pytest.raises(errors.UserError, match='a text of 2 ids has no room'):
    tokenizers.Tokenizer(clip_words.ClipWords(MERGES), 2)


@pytest.mark.parametrize('name', ['ftfy', 'tokenizers'])
def test_a_missing_package_is_a_sentence(monkeypatch, name):
  monkeypatch.setitem(sys.modules, name, None)
  with pytest.raises(errors.UserError,
                     match=f'package {name}: pip install "dinojax.text."'):
    tokenizers.Tokenizer(clip_words.ClipWords(MERGES)).encode(['a'])
