"""Baselines of k-NN are a cache: damaged or of other images, made again."""

import json
import types

import pytest

from dinojax.core import atomic
from dinojax.evals import baselines

SCORES = {'student': {'knn/untrained': 31.5, 'knn/raw_pixels': 20}}


def source(*names):
  return types.SimpleNamespace(spec='x', order=lambda sizes: list(names))


def open_again(folder, *names):
  return baselines.Baselines(folder, (source(*names), source('z'))).known


def test_scores_come_back_for_the_same_images(tmp_path, caplog):
  baselines.Baselines(tmp_path, (source('a'), source('z'))).keep(SCORES)
  assert open_again(tmp_path, 'a') == SCORES and not caplog.text
  assert open_again(tmp_path, 'a', 'b') == {}
  assert 'is of other images' in caplog.text
  assert baselines.Baselines(None, ()).known == {}
  # As they were written before their images were noted, and students named.
  (tmp_path / baselines.FILE).write_text(json.dumps({'': SCORES['student']}))
  assert open_again(tmp_path, 'a') == SCORES


@pytest.mark.parametrize('junk', [
    b'', b'\0\0\0', b'{"": {"knn', b'[]', b'{"": 3}', b'{"": {"a": "x"}}',
    b'{"": {"a": NaN}}', b'[' * 100_000])
def test_what_cannot_be_read_is_measured_again(tmp_path, caplog, junk):
  (tmp_path / baselines.FILE).write_bytes(junk)
  assert open_again(tmp_path, 'a') == {}
  assert baselines.FILE in caplog.text and 'measured again' in caplog.text


def test_a_full_disk_leaves_the_old_file(tmp_path, monkeypatch):
  kept = baselines.Baselines(tmp_path, (source('a'), source('z')))
  kept.keep(SCORES)
  def full(path):
    raise OSError(28, 'No space left on device')
  monkeypatch.setattr(atomic, 'sync', full)
  with pytest.raises(OSError, match='No space'):
    kept.keep({'': {'knn/untrained': 1.0}})
  monkeypatch.undo()
  assert open_again(tmp_path, 'a') == SCORES
  assert [path.name for path in tmp_path.iterdir()] == [baselines.FILE]
