"""Masks of images from above: LoveDA, and the tiles of iSAID.

Source: LoveDA of zenodo 5706578; iSAID on photographs of DOTA-v1.0, with the
  colours and the tiles of mmseg.
"""

import os

from dinojax.core import errors
from dinojax.data import listing
from dinojax.evals.sets import dense

LOVEDA = ('background', 'building', 'road', 'water', 'barren', 'forest',
          'agriculture')
ISAID = (
    'background', 'ship', 'store tank', 'baseball diamond', 'tennis court',
    'basketball court', 'ground track field', 'bridge', 'large vehicle',
    'small vehicle', 'helicopter', 'swimming pool', 'roundabout',
    'soccer ball field', 'plane', 'harbor')
_COLORS = (
    (0, 0, 0), (0, 0, 63), (0, 63, 63), (0, 63, 0), (0, 63, 127), (0, 63, 191),
    (0, 63, 255), (0, 127, 63), (0, 127, 127), (0, 0, 127), (0, 0, 191),
    (0, 0, 255), (0, 191, 127), (0, 127, 191), (0, 127, 255), (0, 100, 155))
_MASK = '_instance_color_RGB'
_FROM_ZENODO = 'unpack Train.zip and Val.zip of zenodo 5706578 into one folder'
_FROM_ISAID = ('a part holds images/ with P0000.png, and Semantic_masks/images/'
               f' with P0000{_MASK}.png, of https://captain-whu.github.io/iSAID')


def loveda(spec: str, split: str) -> dense.Set:
  """`loveda:DIR?split=train`, or val; `&scene=Urban` or Rural, else both.

  Background is a class and counts; 0 is no data and ignored.

  Raises:
    UserError: files that are missing.
  """
  folder, given = dense.options(spec, 'loveda', split=split, scene='')
  part = {'train': 'Train', 'val': 'Val'}.get(given['split'])
  if part is None or given['scene'] not in ('', 'Urban', 'Rural'):
    raise errors.UserError(
        f'{spec}: splits are train and val, scenes Urban and Rural')
  files = []
  for scene in (given['scene'],) if given['scene'] else ('Rural', 'Urban'):
    below = f'{folder}/{part}/{scene}'
    for name in ('images_png', 'masks_png'):
      dense.need(spec, f'{below}/{name}', _FROM_ZENODO)
    files += [(image, mask, f'{scene}/{name}')
              for image, mask, name in dense.pairs_by_stem(
                  spec, f'{below}/images_png', f'{below}/masks_png')]
  table = (dense.IGNORED, *range(254), dense.IGNORED)
  ending = f'&scene={given["scene"]}' if given['scene'] else ''
  return dense.Set(f'loveda:{folder}?split={given["split"]}{ending}', files,
                   dense.Classes(len(LOVEDA), table), classes=LOVEDA)


def isaid(spec: str, split: str) -> dense.Set:
  """`isaid:DIR?split=train`, or val: whole photographs or their tiles.

  Raises:
    UserError: files that are missing.
  """
  folder, given = dense.options(spec, 'isaid', split=split)
  below = f'{folder}/{given["split"]}'
  for name in ('images', 'Semantic_masks/images'):
    dense.need(spec, f'{below}/{name}', _FROM_ISAID)
  files = []
  for name in listing.look(f'{below}/images').paths:
    stem = os.path.splitext(name)[0]
    mask = f'{below}/Semantic_masks/images/{stem}{_MASK}.png'
    dense.need(spec, mask, _FROM_ISAID)
    files.append((f'{below}/images/{name}', mask, name))
  return dense.Set(f'isaid:{folder}?split={given["split"]}', files,
                   dense.Colors(_COLORS), classes=ISAID)
