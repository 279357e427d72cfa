"""Damaged images of every format: read or refused, and nothing else."""

import io

import numpy as np
from PIL import Image
import pytest

from dinojax.data import images
from tests.fuzz import mutate

TRIES, MANY = 200, 20_000
READER = 'tests.fuzz.readers:image'


def picture(mode: str) -> Image.Image:
  y, x = np.mgrid[:12, :20]
  base = np.stack([y * 20 % 256, x * 12 % 256, (x + y) * 7 % 256], -1)
  out = Image.fromarray(base.astype(np.uint8))
  if mode in ('I', 'F', 'I;16'):
    kind = {'I': np.int32, 'F': np.float32, 'I;16': np.uint16}[mode]
    return Image.fromarray((base[..., 0] * 200).astype(kind))
  if mode in ('RGBA', 'LA'):
    out.putalpha(Image.fromarray((x * 12).astype(np.uint8)))
  return out.convert(mode)


# Modes and options of each format; its decoders differ in them.
VARIANTS = {
    'JPEG': [('RGB', {}), ('L', {'progressive': True}), ('CMYK', {})],
    'PNG': [('RGB', {}), ('RGBA', {}), ('P', {'transparency': 0}),
            ('I;16', {}), ('1', {})],
    'WEBP': [('RGB', {}), ('RGBA', {'lossless': True})],
    'GIF': [('P', {}), ('P', {'interlace': 1, 'transparency': 0})],
    'BMP': [('RGB', {}), ('P', {}), ('RGBA', {})],
    'TIFF': [('RGB', {'compression': kind}) for kind in (
        None, 'tiff_lzw', 'tiff_adobe_deflate', 'packbits', 'jpeg', 'zstd',
        'lzma')] + [
            ('1', {'compression': 'group4'}), ('1', {'compression': 'group3'}),
            ('F', {}), ('I;16', {}), ('CMYK', {}), ('P', {}), ('RGBA', {})],
    'PPM': [('RGB', {}), ('L', {}), ('1', {}), ('I', {}), ('F', {})],
    'JPEG2000': [('RGB', {}), ('L', {'irreversible': True}), ('I;16', {}),
                 ('RGBA', {'no_jp2': True})],
    'TGA': [('RGB', {}), ('P', {'compression': 'tga_rle'}), ('LA', {})],
    'ICO': [('RGBA', {'sizes': [(12, 12)]}),
            ('RGB', {'sizes': [(12, 12)], 'bitmap_format': 'bmp'})],
    'AVIF': [('RGB', {'speed': 10}), ('RGBA', {'speed': 10})],
    'DIB': [('RGB', {}), ('P', {})]}


def files(kind: str) -> list[bytes]:
  exif = Image.Exif()
  exif[0x0112] = 6
  out = []
  for number, (mode, options) in enumerate(VARIANTS[kind]):
    file = io.BytesIO()
    if not number and kind in ('JPEG', 'PNG', 'WEBP', 'TIFF', 'AVIF'):
      options = options | {'exif': exif}
    picture(mode).save(file, kind, **options)
    out.append(file.getvalue())
  return out


def test_every_format_that_is_read_is_tried():
  assert set(VARIANTS) == set(images.FORMATS) <= set(Image.SAVE)


def test_damaged_images_are_read_or_bad():
  # As many tries of each format, whatever the number of its variants.
  longest = max(map(len, VARIANTS.values()))
  seeds = [data for kind in VARIANTS
           for data in (files(kind) * longest)[:longest]]
  outcomes = mutate.outcomes(seeds, READER, TRIES * len(VARIANTS), seed=1)
  assert not outcomes.faults, outcomes.report()
  assert outcomes.counts['read'] > 100 and outcomes.counts['bad image'] > 1000
  assert outcomes.stderr == b''


@pytest.mark.slow
@pytest.mark.parametrize('kind', VARIANTS)
def test_many_damaged_images_of_a_format(kind):
  outcomes = mutate.outcomes(files(kind), READER, MANY, seed=2)
  assert not outcomes.faults, outcomes.report()
  assert outcomes.stderr == b''
