"""Checks that images, crops and masks leave the student something to see."""

import math

from dinojax.data import inspection
from dinojax.data import masking
from dinojax.doctor import findings
from dinojax.train import settings as settings_lib

Settings = settings_lib.Settings
Findings = list[findings.Finding]

# configs/demo.py and configs/small_images.py learn with 3 × 3 patches.
_LEAST_LOCAL = 3
# DINOv2 blurs 224 pixels with up to 2, small_images.py 24 pixels with 0.5.
_MOST_BLUR = 0.03
# ImageNet's images, 375 pixels high, are enlarged 1.1 times in DINOv2's crops
# of 224 and 98 pixels; small_images.py's, of 32, as much.
_MOST_ENLARGED = 2.0
_NAMED = 3  # images that are named
_MOST_EMPTY = 0.1  # share of the images


def settings_findings(s: Settings) -> Findings:
  """Checks of crops, masks and blur."""
  return [*crops(s), *masks(s), *blur(s)]


def crops(s: Settings) -> Findings:
  """Is there something to see in a crop?"""
  patch, c = s.model.token_px, s.crops
  sides = c.global_px // patch, c.local_px // patch
  text = f'{sides[0]} × {sides[0]} patches of {patch} pixels'
  if not c.num_local:
    return [findings.ok('crops', f'{text}, no local crops')]
  text += f', local {sides[1]} × {sides[1]}'
  if sides[1] < _LEAST_LOCAL:
    return [findings.warn(
        'crops', f'{text}: too little to recognise',
        f'set crops.local_px to {_LEAST_LOCAL * patch} or more, or '
        'model.patch_px to less')]
  if c.local_px >= c.global_px:
    return [findings.warn(
        'crops', f'{text}: local crops are not smaller',
        f'set crops.local_px to {max(sides[0] // 2, 1) * patch}')]
  return [findings.ok('crops', text)]


def masks(s: Settings) -> Findings:
  """Does every masked crop hide something?"""
  m = s.masks
  if not s.ibot.loss_weight:
    return []
  group = s.train.group_images
  images = group * masking.num_groups(group, m)
  rows = images * s.crops.num_global
  hidden = masking.upper_bounds(rows, s.num_patches, m)
  if not sum(hidden):
    return [findings.error(
        'masks', f'{len(hidden)} of {rows} crops of {images} images are '
        'masked, and no patch is: iBOT has nothing to learn',
        'raise masks.probability, masks.ratio or masks.spread_images')]
  text = (f'{len(hidden)} of {rows} crops of {images} images hide '
          f'{hidden[0]} to {hidden[-1]} of {s.num_patches} patches')
  if hidden[0] < 1:
    return [findings.warn(
        'masks', f'{text}: {hidden.count(0)} hide none',
        f'set masks.ratio to ({2 / s.num_patches:.2g}, {m.ratio[1]:g})')]
  return [findings.ok('masks', text)]


def blur(s: Settings) -> Findings:
  """Does anything remain after the blur?"""
  sigma, side = max(s.augment.blur_sigma), s.crops.global_px
  if sigma <= _MOST_BLUR * side:
    return []
  return [findings.warn(
      'blur', f'up to {sigma:g} pixels of {side}: little of the image '
      'remains',
      f'set augment.blur_sigma to (0.1, {_MOST_BLUR / 2 * side:.2g})')]


def sample_findings(s: Settings, sample: inspection.Sample) -> Findings:
  """Checks of images that were looked at."""
  return [*unreadable(s, sample), *empty(s, sample), *sizes(s, sample)]


def unreadable(s: Settings, sample: inspection.Sample) -> Findings:
  """Would training stop at them?"""
  bad, seen = len(sample.problems), sample.num_seen
  if not bad:
    return [findings.ok('readable', f'all of {seen} that were tried')]
  named = '; '.join(f'{name}: {why}'
                    for name, why in sample.problems[:_NAMED])
  text = f'{bad} of {seen} that were tried are not ({named})'
  limit = s.data.max_bad_fraction
  # So many that it is no chance of the few that were tried, if not of all.
  chance = 2 * math.sqrt(bad) if seen < sample.num_images else 0
  if bad - chance > limit * seen:
    return [findings.error(
        'readable', f'{text}: training stops above data.max_bad_fraction='
        f'{limit:g}', 'repair or remove them, or raise it')]
  return [findings.warn(
      'readable', text, 'training replaces and lists them; repair them, or '
      f'stay below data.max_bad_fraction={limit:g}')]


def empty(s: Settings, sample: inspection.Sample) -> Findings:
  """Do images come out black, white or of one value?"""
  count, seen = len(sample.empty), len(sample.sides)
  if count < max(_MOST_EMPTY * seen, 1):
    return []
  named = '; '.join(f'{name}: {look}'
                    for name, look in sample.empty[:_NAMED])
  return [findings.warn(
      'range', f'{count} of {seen} images come out nearly black, white or of '
      f'one value ({named})',
      'set data.value_range to (black, white) of greys of more than 8 bits, '
      f'such as (0, 4095); it is {s.data.value_range or "that of the type"}; '
      'or remove the images')]


def sizes(s: Settings, sample: inspection.Sample) -> Findings:
  """Are images large enough for the crops?"""
  if not len(sample.sides):
    return []
  short, c = sample.short_px, s.crops
  enlarged = lambda px, scale: px / (short * math.sqrt(scale[0]))
  largest = enlarged(c.global_px, c.global_scale)
  text = f'short side {short} pixels (middle of {len(sample.sides)} images)'
  if c.num_local:
    largest = max(largest, enlarged(c.local_px, c.local_scale))
  if largest <= _MOST_ENLARGED:
    return [findings.ok('image sizes', text)]
  return [findings.warn(
      'image sizes', f'{text}: the smallest crops are enlarged '
      f'{largest:.1f} times and show pixels, not things',
      'smaller crops.global_px, crops.local_px and model.patch_px (see '
      'configs/small_images.py), or larger crops.*_scale')]
