"""Names of the Hub: only where they are meant, at the revision of a run."""

import json
import sys
import types

import pytest

from dinojax.core import errors
from dinojax.interop import hub
from dinojax.runs import assemble
from dinojax.runs import models
from dinojax.runs import workdir as workdir_lib
from tests.fuzz import weights as tiny
from tests.interop import test_files
from tests.train import tiny as tiny_config

OLD, NEW = 'a' * 40, 'b' * 40


class Missing(Exception):
  pass


@pytest.fixture
def cache(tmp_path, monkeypatch):
  """A Hub of one model, whose newest revision is `calls.newest`."""
  fake = types.ModuleType('huggingface_hub')
  fake.errors = types.SimpleNamespace(**{
      name: type(name, (Exception,), {}) for name in (
          'GatedRepoError', 'RepositoryNotFoundError', 'HfHubHTTPError',
          'RevisionNotFoundError', 'HFValidationError')},
      LocalEntryNotFoundError=Missing)
  fake.calls, fake.newest = [], OLD

  def download(name, revision, allow_patterns, local_files_only=False):
    fake.calls.append((name, revision, local_files_only))
    place = tmp_path / 'hub/snapshots' / (revision or fake.newest)
    if local_files_only and not place.exists():
      raise Missing
    if not place.exists():
      test_files.hf_folder(place)
    return str(place)

  fake.snapshot_download = download
  monkeypatch.setitem(sys.modules, 'huggingface_hub', fake)
  return fake


@pytest.mark.parametrize('path', [
    'runs/teacher', 'facebook/dinov2-small', 'weights/mine', 'a/b@main'])
def test_a_path_that_is_not_here_is_not_a_name(cache, path):
  with pytest.raises(errors.UserError, match=f'not exist.*hf:{path}'):
    models.read(path)
  with pytest.raises(errors.UserError, match='is no path'):
    models.read(f'https://huggingface.co/{path}')
  assert not cache.calls


@pytest.mark.parametrize('name', [
    'hf:', 'hf:a', 'hf:a/b/c', 'hf:../b', 'hf:a/b@', 'hf:a b/c', 'hf:~/a'])
def test_names_that_cannot_be(cache, name):
  with pytest.raises(errors.UserError, match='no name of the Hugging Face Hub'):
    models.read(name)
  assert not cache.calls


def test_it_is_fetched_once_and_its_revision_said(cache, capsys):
  weights = models.read('hf:owner/name')
  assert weights.config.embed_dim == tiny.CONFIG.embed_dim
  assert cache.calls == [
      ('owner/name', None, True), ('owner/name', None, False)]
  output = capsys.readouterr().out
  assert 'hf:owner/name is fetched from huggingface.co' in output
  assert f'hf:owner/name is hf:owner/name@{OLD}' in output
  models.read(f'hf:owner/name@{OLD}')
  assert cache.calls[2:] == [('owner/name', OLD, True)]
  assert 'fetched' not in capsys.readouterr().out


def test_a_run_reads_the_revision_of_its_first_start(cache, tmp_path):
  config = tiny_config.config() | {'init': {'source': 'hf:owner/name'}}
  settings, folder = assemble.settings_lib.read(config), tmp_path / 'run'
  folder.mkdir()
  first, pins = assemble.pinned(settings, folder)
  assert first.init.source == f'hf:owner/name@{OLD}'
  workdir_lib.write_config(assemble.epath.Path(folder), config, pins)
  assert json.loads((folder / 'sources.json').read_text()) == {
      'hf:owner/name': f'hf:owner/name@{OLD}'}
  cache.newest, before = NEW, len(cache.calls)
  second, _ = assemble.pinned(settings, folder)
  assert second.init.source == first.init.source
  assert len(cache.calls) == before
  assert hub.pinned('hf:owner/name', '/somewhere/else') == 'hf:owner/name'
