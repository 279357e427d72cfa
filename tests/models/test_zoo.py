"""Published parameter counts, from shapes alone."""

from flax import nnx
import pytest

from dinojax.core import errors
from dinojax.core import tree
from dinojax.models import convnext
from dinojax.models import vit
from dinojax.models import zoo

# DINOv2 and DINOv3 files, counted by running the references.
PARAMETERS = {
    'dinov2_vits14': 22_056_576, 'dinov2_vits14_reg4': 22_058_112,
    'dinov2_vitb14': 86_580_480, 'dinov2_vitb14_reg4': 86_583_552,
    'dinov2_vitl14': 304_368_640, 'dinov2_vitl14_reg4': 304_372_736,
    'dinov2_vitg14': 1_136_480_768, 'dinov2_vitg14_reg4': 1_136_486_912,
    'dinov3_vits16': 21_601_152, 'dinov3_vits16plus': 28_697_472,
    'dinov3_vitb16': 85_669_632, 'dinov3_vitl16': 303_154_176,
    'dinov3_vitl16plus': 403_915_776, 'dinov3_vith16plus': 840_633_600,
    'dinov3_vit7b16': 6_716_043_264,
}
# ConvNeXt's published counts, without the classifier of 1000 classes.
CONVNEXTS = {
    'dinov3_convnext_tiny': 28_589_128 - 769_000,
    'dinov3_convnext_small': 50_223_688 - 769_000,
    'dinov3_convnext_base': 88_591_464 - 1_025_000,
    'dinov3_convnext_large': 197_767_336 - 1_537_000,
}


def count(config: vit.ViTConfig) -> int:
  module = nnx.eval_shape(lambda: vit.ViT(config, rngs=nnx.Rngs(0)))
  return tree.num_elements(nnx.to_pure_dict(nnx.state(module, nnx.Param)))


@pytest.mark.parametrize('name', zoo.names())
def test_published_parameter_count(name):
  assert count(zoo.vit_config(name)) == PARAMETERS[name]


@pytest.mark.parametrize('name', zoo.convnext_names())
def test_published_parameter_count_of_convnexts(name):
  config = zoo.convnext_config(name)
  module = nnx.eval_shape(
      lambda: convnext.ConvNeXt(config, rngs=nnx.Rngs(0)))
  params = nnx.to_pure_dict(nnx.state(module, nnx.Param))
  assert tree.num_elements(params) == CONVNEXTS[name]


@pytest.mark.parametrize('overrides, expected', [
    (dict(patch_px=16, image_px=224), 303_351_808),
    (dict(patch_px=14, image_px=224, ffn='swiglu',
          ffn_hidden=zoo.swiglu_hidden(1024, 4)), 303_655_168),
])
def test_training_size_vitl(overrides, expected):
  assert count(zoo.vit_config('dinov2_vitl14', **overrides)) == expected


def test_so400m_counts_as_in_dinov3():
  config = vit.ViTConfig(
      **zoo.size('so400m'), ffn_hidden=int(1152 * 3.777777778), patch_px=16,
      position='rope', num_registers=0)
  assert count(config) == 415_406_592


@pytest.mark.parametrize('ratio, align, hidden', [(4, 8, 3416), (4, 64, 3456)])
def test_swiglu_hidden_of_vit_huge2(ratio, align, hidden):
  assert zoo.swiglu_hidden(1280, ratio, align) == hidden


def test_unknown_name_lists_the_known():
  with pytest.raises(errors.UserError, match='dinov3_vit7b16'):
    zoo.vit_config('dinov4_vits16')
  with pytest.raises(errors.UserError, match='dinov3_convnext_tiny'):
    zoo.convnext_config('dinov3_convnext_huge')
