"""One backbone out of what training code saves, never a silent choice."""

import numpy as np
import pytest

from dinojax.core import errors
from dinojax.interop import reading
from dinojax.interop import wrappers
from dinojax.interop import writing
from tests.interop import cases

# A state dict of a family's names: the anchor, and one tensor more.
FAMILIES = {
    'meta': ('patch_embed.proj.weight', 'cls_token'),
    'hf v2': ('embeddings.patch_embeddings.projection.weight',
              'embeddings.cls_token'),
    'hf v3': ('embeddings.patch_embeddings.weight', 'embeddings.cls_token'),
    'convnext': ('downsample_layers.0.0.weight', 'stages.0.0.gamma'),
    'timm convnext': ('stem.0.weight', 'head.norm.weight'),
    'hf convnext': ('model.stages.0.downsample_layers.0.weight',
                    'layer_norm.weight')}
BODY = FAMILIES['meta']


def state(names, prefix='', value=1.0):
  return {prefix + name: np.full((2, 2), value, np.float32) for name in names}


def find(tensors, part='ema'):
  return wrappers.find(tensors, part, 'a.pth')


@pytest.mark.parametrize('names', FAMILIES.values(), ids=FAMILIES)
@pytest.mark.parametrize('prefix', [
    '', 'module.', '_orig_mod.', 'module._orig_mod.', '_orig_mod.module.',
    '_forward_module.module._orig_mod.', 'module.module.', 'backbone.',
    '_fsdp_wrapped_module.backbone._checkpoint_wrapped_module.',
    'encoder.net.', 'dinov2.', 'state_dict.model.backbone.'])
def test_any_prefix_comes_off(names, prefix):
  backbone = find(state(names, prefix))
  assert set(backbone.state) == set(names) and not backbone.heads
  told = prefix.replace('module.', '').strip('._') not in (
      '', 'backbone') and 'wrapped' not in prefix and 'orig' not in prefix
  assert bool(backbone.notes) == told, backbone.notes


def test_wrappers_within_names_come_off():
  backbone = find({
      'patch_embed.proj.weight': np.ones(1),
      'blocks.0._orig_mod.norm1._checkpoint_wrapped_module.bias': np.ones(1)})
  assert 'blocks.0.norm1.bias' in backbone.state
  with pytest.raises(errors.UserError, match='weight twice'):
    find(state(BODY) | state(BODY, 'module.', 2.0))
  assert find(state(BODY) | state(BODY, 'module.')).state.keys() == set(BODY)


def whole(*parts, nest='', body='backbone.'):
  tensors = {}
  for value, part in enumerate(parts):
    tensors |= state(BODY, f'{nest}{part}.{body}', value)
    tensors[f'{nest}{part}.dino_head.last_layer.weight'] = np.full(1, value)
  return tensors


@pytest.mark.parametrize(('parts', 'part', 'taken'), [
    (('student', 'teacher'), 'ema', 'teacher'),
    (('student', 'teacher'), 'student', 'student'),
    (('teacher', 'student', 'model_ema'), 'ema', 'model_ema'),
    (('teacher', 'student', 'model_ema'), 'teacher', 'teacher'),
    (('student', 'gram_teacher', 'teacher'), 'ema', 'teacher'),
    (('model', 'model_ema'), 'ema', 'model_ema'),
    (('model', 'model_ema'), 'student', 'model'),
    (('state_dict', 'state_dict_ema'), 'ema', 'state_dict_ema'),
    (('student_backbone', 'teacher_backbone'), 'ema', 'teacher_backbone'),
    (('encoder', 'target_encoder'), 'ema', 'target_encoder')])
@pytest.mark.parametrize('nest', ['', 'model.', 'module.'])
def test_of_a_training_the_one_that_is_meant(parts, part, taken, nest):
  shown = nest if nest == 'model.' else ''
  tensors = whole(*parts, nest=nest)
  # What an optimizer keeps for each parameter is no backbone.
  tensors |= state(BODY, 'optimizer.state.exp_avg.student.backbone.', 9)
  backbone = find(tensors, part)
  value = parts.index(taken)
  assert set(backbone.state) == set(BODY)
  assert (backbone.state['cls_token'] == value).all()
  assert backbone.heads['dino_head']['last_layer.weight'] == value
  assert any(f'{shown}{taken}' in note and 'backbone' in note
             for note in backbone.notes), backbone.notes
  assert any('left out' in note for note in backbone.notes)


def test_what_is_not_known_is_asked():
  for tensors in (whole('left', 'right'), whole('model', 'other'),
                  state(BODY) | state(BODY, 'other.', 2.0)):
    with pytest.raises(errors.UserError, match='several backbones: .*as part'):
      find(tensors)
  assert (find(whole('left', 'right'), 'right').state['cls_token'] == 1).all()
  # Two EMA that differ and have the same claim.
  with pytest.raises(errors.UserError, match='several backbones'):
    find(whole('teacher_a', 'teacher_b'))
  twice = {key.replace('teacher_a', 'teacher_b'): value
           for key, value in whole('teacher_a').items()}
  assert find(whole('teacher_a') | twice).state.keys() == set(BODY)
  with pytest.raises(errors.UserError, match='no DINOv2 or DINOv3 backbone'):
    find({'conv1.weight': np.ones(1)})
  note, *_ = find(whole('teacher'), 'student').notes
  assert 'it holds no student' in note


def test_one_without_a_prefix_holds_none_of_the_others():
  tensors = state(BODY) | state(BODY, 'ema.', 2.0)
  assert (find(tensors).state['cls_token'] == 2).all()
  backbone = find(tensors, 'student')
  assert set(backbone.state) == set(BODY) and (
      backbone.state['cls_token'] == 1).all()
  assert 'left out ema' in backbone.notes[-1]


def test_a_classifier_is_left_out_and_the_unknown_is_not():
  for key in ('classifier.weight', 'head.bias', 'head.fc.weight', 'fc.bias',
              'linear_head.weight', 'n_averaged'):
    backbone = find(state(BODY) | {key: np.ones(1)})
    assert key not in backbone.state
    assert 'left out' in backbone.notes[-1] and key.split('.')[0] in (
        backbone.notes[-1])
  backbone = find(state(BODY, 'dinov2.') | {
      'classifier.weight': np.ones(1), 'dinov2.extra': np.ones(1)})
  assert 'extra' in backbone.state and 'left out classifier (1 tensor)' in (
      backbone.notes[-1])


@pytest.mark.slow  # PyTorch's checkpoints take seconds to import
@pytest.mark.torch
def test_the_file_of_our_own_advice_loads(tmp_path):
  """What the message on a distributed checkpoint says to run."""
  import torch
  from torch.distributed import checkpoint
  from torch.distributed.checkpoint import format_utils
  weights = cases.weights(cases.V3)
  body = {key: torch.from_numpy(value.copy()) for key, value in
          writing.meta_state(weights).items()}
  model = {f'{part}.backbone.{key}': value + (part == 'student')
           for part in ('student', 'teacher', 'model_ema')
           for key, value in body.items()}
  checkpoint.save({'model': model, 'iteration': 7, 'optimizer': {
      'state': {key: {'exp_avg': value} for key, value in model.items()
                if key.startswith('student')}}},
                  checkpoint_id=tmp_path / 'dcp', no_dist=True)
  with pytest.raises(errors.UserError, match='dcp_to_torch'):
    reading.read(str(tmp_path / 'dcp'))
  format_utils.dcp_to_torch_save(tmp_path / 'dcp', tmp_path / 'whole.pth')
  ema = reading.read(str(tmp_path / 'whole.pth'), num_heads=2)
  np.testing.assert_array_equal(
      ema.params['cls_token'], weights.params['cls_token'])
  assert any('model.model_ema is taken' in note for note in ema.notes)
  other = reading.read(
      str(tmp_path / 'whole.pth'), num_heads=2, part='student')
  np.testing.assert_array_equal(
      other.params['cls_token'], weights.params['cls_token'] + 1)
