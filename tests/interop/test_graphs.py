"""Exported programs give our features in runtimes that know nothing of us."""

import dataclasses
import sys

import jax
import numpy as np
import onnx
import onnxruntime
import pytest
from safetensors import numpy as safetensors_numpy

from dinojax.core import errors
from dinojax.features import backbone as backbone_lib
from dinojax.interop import graphs
from dinojax.interop import writing
from tests.interop import cases


def side(config):
  return 4 * (getattr(config, 'patch_px', None) or 32)


def run_onnx(folder, images):
  session = onnxruntime.InferenceSession(
      str(folder / 'model.onnx'), providers=['CPUExecutionProvider'])
  names = [output.name for output in session.get_outputs()]
  return dict(zip(names, session.run(
      None, {'images': images.transpose(0, 3, 1, 2)}), strict=True))


def run_stablehlo(folder, images):
  program = jax.export.deserialize((folder / 'model.stablehlo').read_bytes())
  assert program.platforms == ('cpu', 'cuda', 'tpu')
  return program.call(
      safetensors_numpy.load_file(folder / 'params.safetensors'), images)


RUN = {'onnx': run_onnx, 'stablehlo': run_stablehlo}


@pytest.mark.parametrize('kind', RUN)
@pytest.mark.parametrize('name', [
    pytest.param(name, marks=pytest.mark.slow)
    # test_checking.py writes and runs v2.
    if name != 'v3_swiglu' else name for name in cases.MODELS])
def test_programs_give_our_features_of_any_batch(name, kind, tmp_path):
  config = cases.MODELS[name]
  written = cases.weights(config)
  writing.write(str(tmp_path), written, kind, image_px=side(config))
  ours = backbone_lib.Backbone.of(written)
  for count in (1, 3):
    images = cases.images(config, (4, 4), count)
    want, got = ours(images), RUN[kind](tmp_path, images)
    assert set(got) == {'cls', 'patches'} | (
        {'registers'} if want.registers.shape[1] else set())
    for part, value in got.items():
      np.testing.assert_allclose(
          value, getattr(want, part), rtol=1e-4, atol=1e-4, err_msg=part)


@pytest.mark.parametrize('kind', RUN)
def test_learned_positions_are_resampled_to_the_size_asked_for(
    kind, tmp_path):
  written = cases.weights(dataclasses.replace(
      cases.V2, interpolate_offset=0.1, num_registers=1))
  writing.write(str(tmp_path), written, kind, image_px=84)
  images = cases.images(cases.V2, (6, 6))
  want = backbone_lib.Backbone.of(written)(images)
  got = RUN[kind](tmp_path, images)
  np.testing.assert_allclose(
      got['patches'], want.patches, rtol=1e-4, atol=1e-4)


def test_the_onnx_graph_is_valid_and_names_its_ends(tmp_path):
  writing.write(str(tmp_path), cases.weights(cases.V3), 'onnx', image_px=64)
  onnx.checker.check_model(str(tmp_path / 'model.onnx'), full_check=True)
  model = onnx.load(tmp_path / 'model.onnx')
  shape = lambda value: [
      dim.dim_param or dim.dim_value
      for dim in value.type.tensor_type.shape.dim]
  assert {v.name: shape(v) for v in model.graph.input} == {
      'images': ['batch', 3, 64, 64]}
  assert {v.name: shape(v) for v in model.graph.output} == {
      'cls': ['batch', 48], 'registers': ['batch', 4, 48],
      'patches': ['batch', 16, 48]}
  kinds = {node.op_type for node in model.graph.node}
  assert 'MatMul' in kinds
  # Loops are unrolled, and angles are constants.
  assert not kinds & {'Loop', 'Scan', 'Sin', 'Cos', 'Range'}


def test_parameters_of_large_models_lie_beside_the_graph(
    tmp_path, monkeypatch):
  written, images = cases.weights(cases.V2), cases.images(cases.V2, (4, 4))
  monkeypatch.setattr(graphs, '_ONE_FILE_BYTES', 1000)
  sentence, = writing.write(str(tmp_path), written, 'onnx')
  assert 'model.onnx.data, which has to stay' in sentence
  assert (tmp_path / 'model.onnx').stat().st_size < 100_000  # of 400 kB
  beside = run_onnx(tmp_path, images)
  monkeypatch.undo()
  sentence, = writing.write(str(tmp_path), written, 'onnx')
  assert 'data' not in sentence and not (tmp_path / 'model.onnx.data').exists()
  np.testing.assert_array_equal(
      beside['cls'], run_onnx(tmp_path, images)['cls'])


@pytest.mark.parametrize('config, wanted, got', [
    (cases.V2, None, 56),  # its learned positions are for less than 224
    (dataclasses.replace(cases.V2, image_px=518), None, 224),
    (cases.V2, 112, 112),
    (cases.V3, None, 224),
    (dataclasses.replace(cases.V3, patch_px=15), None, 210),
    (cases.CONVNEXT, None, 224)])
def test_a_program_takes_whole_patches(config, wanted, got):
  assert graphs.image_px(config, wanted) == got


@pytest.mark.parametrize('config, wanted, fix', [
    (cases.V3, 100, 96), (cases.V3, 3, 16), (cases.CONVNEXT, 100, 96)])
def test_a_part_of_a_patch_is_refused(config, wanted, fix, tmp_path):
  with pytest.raises(errors.UserError,
                     match=f'image_px={wanted} .* set it to {fix}'):
    writing.write(
        str(tmp_path), cases.weights(config), 'stablehlo', image_px=wanted)


def test_arithmetic_is_float32_whatever_the_model_was_trained_in(tmp_path):
  config = dataclasses.replace(
      cases.V3, dtype='bfloat16', attention='head_major')
  writing.write(
      str(tmp_path), cases.weights(config), 'stablehlo', image_px=64)
  images = cases.images(cases.V3, (4, 4))
  want = backbone_lib.Backbone.of(cases.weights(cases.V3))(images)
  got = run_stablehlo(tmp_path, images)
  np.testing.assert_allclose(got['cls'], want.cls, rtol=1e-4, atol=1e-4)


def test_a_missing_converter_is_named(tmp_path, monkeypatch):
  monkeypatch.setitem(sys.modules, 'jax2onnx', None)
  with pytest.raises(errors.UserError, match=r'dinojax\[onnx\]'):
    writing.write(str(tmp_path), cases.weights(cases.V2), 'onnx')


def test_a_failing_converter_is_named(tmp_path, monkeypatch):
  import jax2onnx

  def fail(*args, **kwargs):
    raise NotImplementedError('no such primitive')

  monkeypatch.setattr(jax2onnx, 'to_onnx', fail)
  with pytest.raises(errors.UserError,
                     match='NotImplementedError: no such prim.*stablehlo'):
    writing.write(str(tmp_path), cases.weights(cases.V2), 'onnx')
