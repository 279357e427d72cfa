"""Every golden case that is found, through the project's functions."""

import numpy as np
import pytest

from tests import golden
from tests.kinds import copies  # noqa: F401  each registers its kinds
from tests.kinds import curation  # noqa: F401
from tests.kinds import data  # noqa: F401
from tests.kinds import dense  # noqa: F401
from tests.kinds import depth  # noqa: F401
from tests.kinds import detection  # noqa: F401
from tests.kinds import detector  # noqa: F401
from tests.kinds import dpt  # noqa: F401
from tests.kinds import dynamics  # noqa: F401
from tests.kinds import eomt  # noqa: F401
from tests.kinds import evals  # noqa: F401
from tests.kinds import heads  # noqa: F401
from tests.kinds import libraries  # noqa: F401
from tests.kinds import losses  # noqa: F401
from tests.kinds import mask2former  # noqa: F401
from tests.kinds import masks  # noqa: F401
from tests.kinds import matching  # noqa: F401
from tests.kinds import measures  # noqa: F401
from tests.kinds import models  # noqa: F401
from tests.kinds import optimization  # noqa: F401
from tests.kinds import plain  # noqa: F401
from tests.kinds import probes  # noqa: F401
from tests.kinds import text  # noqa: F401
from tests.kinds import training  # noqa: F401
from tests.kinds import videos  # noqa: F401

# What the other cases of training and of features have too.
_SLOW = ('train_v3_base', 'train_v2_sinkhorn_separate_heads',
         'train_v2_centering_shared_head', 'v2_vit_p14_chunked_nobias',
         'v2_vit_p16_swiglufused_reg4', 'v3_vit_p16_swiglu_untiecls_max',
         'v3_vit_p16_mlp_reg4_maskk', 'v3_vit_p16_rmsnorm_untieboth',
         'v3_convnext_patch16', 'td_dpt_head_v2_ignore',
         'td_dpt_head_v3_project_odd', 'td_chmv2_head', 'em_pmt_decoder',
         'em_pmt_decoder_plain', 'em_eomt_dinov2', 'em_eomt_dinov2_plain',
         'em_eomt_dinov3', 'em_eomt_loss', 'em_eomt_repo_dinov2',
         'em_eomt_repo_dinov3',
         'de_scale_shift_invariant_loss_empty', 'de_vit_adapter_train',
         'de_vit_adapter_dinov3', 'de_m2f_pixel_decoder_grad',
         'de_m2f_transformer_decoder', 'de_m2f_whole', 'de_detr_loss_reparam',
         'de_detr_loss_normalised', 'train_v3_distill', 'em_pmt_whole',
         'de_detr_windows_2x2', 'de_detr_whole_training_branch',
         'em_eomt_dinov3_anneal', 'td_dinotxt_train_steps',
         'de_m2f_loss_no_target', 'de_detr_whole', 'de_detr_windows_none',
         'de_detr_decoder_normalised_log', 'td_dpt_head_v3_synthmix_like',
         'v3_convnext_tiny_dims', 'timm_convnext_dinov3', 'v2_vit_p14_mlp',
         'v3_vit_p14_swiglu64_untieglobal_min',
         'td_depth_linear_v3_train_two_losses_clipped',
         'td_dinotxt_vision_head_train_droppath',
         'td_seg_linear_head_train_step_dropout')

# The vocabulary of CLIP is in a package beside PyTorch.
_TORCH = ('td_dinotxt_tokenizer_clip',)


@pytest.mark.parametrize('name, folder', [
    pytest.param(name, folder, id=name, marks=[
        mark for mark, names in ((pytest.mark.slow, _SLOW),
                                 (pytest.mark.torch, _TORCH))
        if name in names])
    for folder in golden.folders() for name in golden.catalogue(folder)])
def test_equals_the_reference(name, folder):
  case = golden.load(name, folder)
  assert case.meta['kind'] in golden.KINDS, (
      f'{name} is of kind {case.meta["kind"]}, which tests/kinds lacks')
  got = golden.KINDS[case.meta['kind']](case)
  case.finish()
  case.compare(got)


def test_what_is_not_understood_fails():
  case = golden.Case(
      {'name': 'a', 'config': {'known': 1, 'inner': {'new': 2}},
       'calls': [{'id': 'x'}], 'tolerance': {'rtol': 1e-6, 'atol': 0}},
      {}, {}, {'y': np.float32([1, 2])})
  assert case.config['known'] == 1 and case.calls[0]['id'] == 'x'
  assert case.config['inner']
  with pytest.raises(AssertionError, match='config.inner: nothing reads new'):
    case.finish()
  with pytest.raises(AssertionError, match='inner.new=2'):
    case.config['inner'].only('new', 3)
  case.finish()
  with pytest.raises(AssertionError, match=r"nothing gives \['y'\]"):
    case.compare({'z': 0})
  with pytest.raises(AssertionError, match='a: y'):
    case.compare({'y': [1, 2.1]})
  with pytest.raises(AssertionError, match=r'\(1,\) not \(2,\)'):
    case.compare({'y': [1]})
  case.compare({'y': golden.Within([1, 2.1], of_largest=0.06)})
