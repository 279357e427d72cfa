"""ConvNeXts from a frozen ViT-7B/16: DINOv3's models without attention.

  dinojax train --config=convnext_distill \
    --config.distillation.source=gs://BUCKET/vit7b_highres \
    --workdir=gs://BUCKET/convnexts \
    --config.data.train=arrayrecord:gs://BUCKET/images/*.arrayrecord
  dinojax train --config=convnext_distill:tiny …

All four at once, or those that are named: `tiny`, `small`, `base`, `large`.
A position of theirs is 32 pixels wide, a patch of the teacher 16: crops are
512 and 224 pixels, and the teacher sees them at half their side. `:smoke`
wants a teacher: see configs/vit7b_distill.py, which this file chooses from.

Source: convnext_{tiny,small,base,large} distillation files of DINOv3.
Hardware: 256 TPU v5p (not compiled for them yet). 625,000 steps.
Expected: the released T, S, B and L have 87.7, 88.7, 89.2 and 89.4 on
ImageNet-ReaL at 512 pixels.
First loss: 12.48 = ln 262144 for both DINO parts; iBOT's is half of 11.50.
Differs: the reference means to shrink the teacher's crops and does not. Batch
4096 is what a comment in its files says; the one they give is for a test.
"""

from dinojax.configs import common
from dinojax.configs import vit7b_distill

_SIZES = ('tiny', 'small', 'base', 'large')


def get_config(arg: str = ''):
  """Sizes by name, all without; `smoke` ends in seconds."""
  words = common.words(arg, (*_SIZES, 'smoke'))
  sizes = [word for word in words if word in _SIZES] or _SIZES
  names = [f'convnext_{size}' for size in sizes]
  return vit7b_distill.get_config(
      ','.join([*names, *(('smoke',) if 'smoke' in words else ())]))
