"""Judges of images: functions, files, and what blurring leaves."""

import numpy as np
import onnx
from onnx import helper
from onnx import numpy_helper
import pytest

from dinojax.core import errors
from dinojax.curate import plugins

FLOAT = onnx.TensorProto.FLOAT


def redness(images):
  """Share of red: an image of one colour is 0 or 1."""
  return np.array([x[..., 0].mean() / 255 for x in images])


def corner(images):
  """A face in the upper left corner of images with something red there."""
  return [np.array([[0, 0, 16, 16]]) if x[:16, :16, 0].mean() > 200
          else np.zeros((0, 4)) for x in images]


def nonsense(images):
  """No boxes, and no scores."""
  return [np.full((2, 3), np.nan) for _ in images]


def save(path, nodes, shape, outputs, constants):
  graph = helper.make_graph(
      nodes, 'judge', [helper.make_tensor_value_info('image', FLOAT, shape)],
      [helper.make_tensor_value_info(name, FLOAT, None) for name in outputs],
      [numpy_helper.from_array(value, name)
       for name, value in constants.items()])
  onnx.save(helper.make_model(graph, opset_imports=[
      helper.make_opsetid('', 17)], ir_version=10), path)
  return f'onnx:{path}'


def linear_scorer(path):
  """Logits: minus and plus the mean of the first channel."""
  return save(path, [
      helper.make_node('ReduceMean', ['image'], ['m'], axes=[2, 3],
                       keepdims=0),
      helper.make_node('MatMul', ['m', 'w'], ['out'])], [1, 3, 8, 8], ['out'],
              {'w': np.array([[-2, 2], [0, 0], [0, 0]], np.float32)})


def yunet(path, side=64):
  """A detector that always sees one face: cell (2, 1) of the grid of 16."""
  constants, outputs = {}, []
  for stride in (8, 16, 32):
    cells = (side // stride) ** 2
    values = {'cls': np.zeros((1, cells, 1)), 'obj': np.ones((1, cells, 1)),
              'bbox': np.zeros((1, cells, 4))}
    if stride == 16:
      at = 2 * (side // stride) + 1
      values['cls'][0, at] = 0.9
      values['cls'][0, at + 1] = 0.8  # nearly the same box, from its neighbour
      values['bbox'][0, at] = 0.5, 0.25, np.log(2), np.log(1.5)
      values['bbox'][0, at + 1] = -0.5, 0.25, np.log(2), np.log(1.5)
    for kind, value in values.items():
      constants[f'c_{kind}_{stride}'] = value.astype(np.float32)
      outputs.append(f'{kind}_{stride}')
  constants['zero'] = np.zeros(1, np.float32)
  nodes = [helper.make_node('ReduceMean', ['image'], ['mean'], keepdims=0),
           helper.make_node('Mul', ['mean', 'zero'], ['nothing'])]
  nodes += [helper.make_node('Add', [f'c_{name}', 'nothing'], [name])
            for name in outputs]
  return save(path, nodes, [1, 3, side, side], outputs, constants)


def flat(*colour, size=(32, 48)):
  return np.broadcast_to(np.array(colour, np.uint8), (*size, 3)).copy()


def test_scores_of_functions_and_files(tmp_path):
  images = [flat(0, 0, 0), flat(255, 9, 9)]
  judge = plugins.scorer(f'module:{__name__}:redness')
  np.testing.assert_allclose(judge(images), [0, 1])
  judge = plugins.scorer(linear_scorer(tmp_path / 'a.onnx'))
  red = (np.array([0, 1]) - 0.485) / 0.229
  np.testing.assert_allclose(judge(images), 1 / (1 + np.exp(-4 * red)),
                             rtol=1e-4)
  assert len(plugins.facts(f'onnx:{tmp_path}/a.onnx')['sha256']) == 64


def test_faces_of_yunet_in_pixels_of_the_image(tmp_path):
  judge = plugins.detector(yunet(tmp_path / 'a.onnx'))
  # 128 × 96 pixels are halved to fit into 64.
  (box,), = judge([flat(1, 2, 3, size=(96, 128))])
  center, size = np.array([1.5, 2.25]) * 16, np.array([2, 1.5]) * 16
  np.testing.assert_allclose(box, 2 * np.concatenate(
      [center - size / 2, center + size / 2]), rtol=1e-5)


def test_blurred_boxes_show_nothing_and_the_rest_is_as_it_was():
  pixels = np.random.default_rng(0).integers(0, 256, (64, 80, 3), np.uint8)
  out = plugins.blurred(pixels, np.array([[20, 10, 52, 42], [-5, 60, -1, 63]]))
  inside = np.zeros((64, 80), bool)
  inside[6:46, 16:56] = True
  np.testing.assert_array_equal(out[~inside], pixels[~inside])
  assert out[10:42, 20:52].std() < 0.35 * pixels[10:42, 20:52].std()
  np.testing.assert_array_equal(plugins.blurred(pixels, np.zeros((0, 4))),
                                pixels)


@pytest.mark.parametrize('make, text, words', [
    (plugins.scorer, 'best', 'is no plug-in'),
    (plugins.scorer, 'onnx:/no/file', 'cannot be read'),
    (plugins.scorer, 'module:no.such:thing', 'cannot be imported'),
    (plugins.scorer, f'module:{__name__}:nothing', 'cannot be imported')])
def test_judges_that_are_not_there(make, text, words):
  with pytest.raises(errors.UserError, match=words):
    make(text)
  with pytest.raises(errors.UserError, match=words):
    plugins.facts(text)


def test_judges_that_are_none(tmp_path):
  name = f'module:{__name__}:nonsense'
  with pytest.raises(errors.UserError, match='a number from 0 to 1'):
    plugins.scorer(name)([flat(0, 0, 0)])
  with pytest.raises(errors.UserError, match='does not give boxes'):
    plugins.detector(name)([flat(0, 0, 0)])
  with pytest.raises(errors.UserError, match="YuNet's"):
    plugins.detector(linear_scorer(tmp_path / 'a.onnx'))
