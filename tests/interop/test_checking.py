"""What was written is run on the spot, and a wrong file does not pass."""

import dataclasses
import re
import sys

import numpy as np
import pytest

from bench import peers
from dinojax.core import errors
from dinojax.interop import checking
from dinojax.interop import files
from dinojax.interop import graphs
from dinojax.interop import store
from dinojax.interop import writing
from dinojax.runs import conversions
from tests import forked
from tests.interop import cases

TORCH = ('hf', 'timm')
# In make test transformers opens a folder in test_export.py.
KINDS = [pytest.param(kind, marks=[pytest.mark.torch] * (kind in TORCH) + [
    pytest.mark.slow] * (kind == 'hf')) for kind in writing.FORMATS]
FILES = {'meta': 'backbone.safetensors', 'hf': 'model.safetensors',
         'timm': 'model.safetensors', 'stablehlo': graphs.PARAMS}


def write(folder, written, kind, **kwargs):
  if kind in TORCH:
    peers.torchvision()
  writing.write(str(folder), written, kind, **kwargs)


def check(folder, written, kind, **kwargs):
  return checking.check(
      str(folder), written, kind, conversions.features, **kwargs)


def worst(sentence):
  return float(re.search(r'at most (\S+)', sentence)[1])


@pytest.mark.parametrize('kind', KINDS)
# Features of every model are compared in test_graphs.py and test_export.py.
@pytest.mark.parametrize('name', ['v2', *(
    pytest.param(name, marks=pytest.mark.slow)
    for name in ('v3_swiglu', 'convnext'))])
def test_a_good_file_passes_and_says_how_close_it_is(name, kind, tmp_path):
  written = cases.weights(cases.MODELS[name])
  write(tmp_path, written, kind)
  sentence = check(tmp_path, written, kind)
  assert sentence.startswith('checked: ') and 'of 2 images' in sentence
  assert worst(sentence) <= 1e-5


@pytest.mark.parametrize('kind', KINDS)
def test_a_wrong_file_does_not(kind, tmp_path):
  written = cases.weights(cases.V2)
  write(tmp_path, written, kind)
  if kind == 'onnx':  # a program of other weights
    params = written.params | {'cls_token': -written.params['cls_token']}
    write(tmp_path, dataclasses.replace(written, params=params), kind)
  else:
    path = str(tmp_path / FILES[kind])
    state = files.read(path)
    name = next(key for key in state if key.endswith('cls_token'))
    files.write_safetensors(path, state | {name: -state[name]})
  with pytest.raises(errors.UserError, match='is wrong'):
    check(tmp_path, written, kind)
  if kind != 'meta':
    sentence = check(tmp_path, written, kind, lossy=True)
    assert 'with parts left out' in sentence and worst(sentence) > 1e-2


@pytest.mark.parametrize('kind', KINDS)
def test_a_file_that_does_not_load_is_named(kind, tmp_path):
  written = cases.weights(cases.V2)
  write(tmp_path, written, kind)
  if kind in ('onnx', 'stablehlo'):
    (tmp_path / f'model.{kind}').write_bytes(b'damaged')
  else:
    path = str(tmp_path / FILES[kind])
    state = files.read(path)
    del state[next(key for key in state if key.endswith('norm1.weight'))]
    files.write_safetensors(path, state)
  with pytest.raises(errors.UserError, match='does not run|does not hold'):
    check(tmp_path, written, kind)


def test_a_runtime_that_is_missing_is_named(tmp_path, monkeypatch):
  written = cases.weights(cases.V2)
  writing.write(str(tmp_path), written, 'timm')
  monkeypatch.setitem(sys.modules, 'timm', None)
  assert check(tmp_path, written, 'timm') == (
      'not checked: timm would run it, and is not installed')


def test_a_runtime_that_does_not_import_is_named(tmp_path, monkeypatch):
  written = cases.weights(cases.V2)
  writing.write(str(tmp_path), written, 'timm')
  # As torchvision beside another build of PyTorch does.
  message = 'operator torchvision::nms does not exist'
  (tmp_path / 'timm.py').write_text(f'raise RuntimeError("{message}\\nmore")')
  monkeypatch.delitem(sys.modules, 'timm', raising=False)
  monkeypatch.syspath_prepend(tmp_path)
  assert check(tmp_path, written, 'timm') == (
      'not checked: timm would run it, and cannot be imported here '
      f'(RuntimeError: {message})')


def test_the_command_writes_a_program_and_checks_it(tmp_path):
  written = cases.weights(cases.CONVNEXT)
  store.save(str(tmp_path / 'ours'), written)
  code, text = forked.run(
      ['export', f'--source={tmp_path / "ours"}',
       f'--out={tmp_path / "theirs"}', '--format=stablehlo', '--image_px=64'],
      module='dinojax.commands.convert', JAX_PLATFORMS='cpu')
  assert code == 0, text
  last = text.splitlines()[-1]
  assert '64 × 64 pixels' in last and worst(last) <= 1e-5
  np.testing.assert_array_equal(
      files.read(str(tmp_path / 'theirs' / graphs.PARAMS))['norm/scale'],
      written.params['norm']['scale'])
