"""Any ONNX file that takes images and gives rows describes images."""

import numpy as np
import onnx
from onnx import TensorProto
from onnx import helper
import pytest

from dinojax.core import errors
from dinojax.curate import onnx_descriptor
from dinojax.curate import resizing
from tests.curate import test_pca_hash


def write(path, *, last=True, dtype='uint8', batch='b', size=('y', 'x'),
          flat=True, bias=0.0):
  """The mean colour, as a graph."""
  nodes, at = [], 'images'
  if dtype == 'uint8':
    nodes.append(helper.make_node('Cast', [at], ['float'], to=1))
    at = 'float'
  if last:
    nodes.append(helper.make_node(
        'Transpose', [at], ['first'], perm=[0, 3, 1, 2]))
    at = 'first'
  nodes += [
      helper.make_node('GlobalAveragePool', [at], ['mean']),
      helper.make_node('Add', ['mean', 'bias'], ['moved']),
      helper.make_node('Flatten' if flat else 'Identity', ['moved'], ['out'])]
  shape = (batch, *size, 3) if last else (batch, 3, *size)
  graph = helper.make_graph(
      nodes, 'colour', [helper.make_tensor_value_info(
          'images', TensorProto.UINT8 if dtype == 'uint8'
          else TensorProto.FLOAT, shape)],
      [helper.make_tensor_value_info('out', TensorProto.FLOAT, None)],
      [helper.make_tensor('bias', TensorProto.FLOAT, [1], [bias])])
  onnx.save(helper.make_model(
      graph, opset_imports=[helper.make_opsetid('', 18)], ir_version=10),
            str(path))
  return str(path)


def pictures(count=5):
  return [np.asarray(x.resize((100 + 20 * (i % 2), 80)))
          for i, x in enumerate(test_pca_hash.scenes(count))]


def by_hand(images, scale=1.0, mean=0.0, std=1.0):
  rows = np.stack([(x.mean((0, 1)) / scale - mean) / std for x in images])
  return rows / np.linalg.norm(rows, axis=1, keepdims=True)


FORMS = {'as SSCD': {}, 'first': dict(last=False, dtype='float'),
         'last': dict(dtype='float'), 'batch of 3': dict(batch=3)}


@pytest.mark.parametrize('form', FORMS)
def test_every_form_gives_unit_rows_in_order(form, tmp_path):
  got = onnx_descriptor.Descriptor(
      write(tmp_path / 'colour.onnx', **FORMS[form]), resize='short:80')
  images = pictures()
  rows = got.describe(images)
  assert rows.dtype == np.float32
  values = (255, *map(np.array, onnx_descriptor.IMAGENET)) if (
      FORMS[form].get('dtype')) else ()
  np.testing.assert_allclose(rows, by_hand(images, *values), atol=2e-5)
  np.testing.assert_allclose(np.linalg.norm(rows, axis=1), 1, atol=1e-6)
  np.testing.assert_allclose(
      np.concatenate([got.describe([x]) for x in images]), rows, atol=1e-6)
  assert got.facts['resize'] == 'short:80' and len(got.facts['sha256']) == 64


@pytest.mark.parametrize('text, size', [
    ('short:288', (384, 288)), ('square:320', (320, 320))])
def test_sizes(text, size):
  assert resizing.Resize(text).size(128, 96) == size
  assert resizing.Resize('short:288').size(1000, 333) == (864, 288)


@pytest.mark.parametrize('changes, resize, message', [
    (dict(flat=False), 'short:64', 'a descriptor is one row of numbers'),
    (dict(bias=float('nan')), 'short:64', 'not finite'),
    (dict(size=(64, 64)), 'short:64', 'takes images of 64 × 64 pixels'),
    ({}, 'long:5', 'give short:288'), ({}, 'short:0', 'give short:288')])
def test_other_files_are_sentences(changes, resize, message, tmp_path):
  path = write(tmp_path / 'colour.onnx', **changes)
  with pytest.raises(errors.UserError, match=message):
    onnx_descriptor.Descriptor(path, resize=resize)


def test_damaged_and_missing_files(tmp_path):
  (tmp_path / 'x.onnx').write_bytes(b'nothing')
  with pytest.raises(errors.UserError, match='is not an ONNX file'):
    onnx_descriptor.Descriptor(str(tmp_path / 'x.onnx'))
  with pytest.raises(errors.UserError, match='cannot be read'):
    onnx_descriptor.Descriptor(str(tmp_path / 'none.onnx'))
