"""Odd files: what can be decoded is, the rest says why."""

import io
import os
import pathlib
import struct
import zlib

import numpy as np
from PIL import Image
from PIL import PngImagePlugin
import pytest

from dinojax.data import images


def photo(width=48, height=32):
  rows, columns = np.mgrid[:height, :width]
  return Image.fromarray(np.stack(
      [rows * 7 % 256, columns * 5 % 256, (rows + columns) * 3 % 256],
      axis=-1).astype(np.uint8))


def encode(image, kind, **options):
  out = io.BytesIO()
  image.save(out, kind, **options)
  return out.getvalue()


def decode(data, **options):
  image = images.open_image(data, **options)
  pixels = image.decode()
  assert pixels.mode == 'RGB' and pixels.size == image.size
  return np.asarray(pixels)


@pytest.mark.parametrize('kind', ['PNG', 'TIFF'])
@pytest.mark.parametrize('turn, inverse', [
    (1, None), (2, 'FLIP_LEFT_RIGHT'), (3, 'ROTATE_180'),
    (4, 'FLIP_TOP_BOTTOM'), (5, 'TRANSPOSE'), (6, 'ROTATE_90'),
    (7, 'TRANSVERSE'), (8, 'ROTATE_270')])
def test_exif_orientation_is_undone(turn, inverse, kind):
  upright = photo()
  stored = upright if inverse is None else upright.transpose(
      getattr(Image.Transpose, inverse))
  exif = Image.Exif()
  exif[0x0112] = turn
  data = encode(stored, kind, exif=exif)
  assert images.open_image(data).size == upright.size
  np.testing.assert_array_equal(decode(data), np.asarray(upright))


@pytest.mark.parametrize('mode', ['L', 'LA', 'RGBA', 'P', '1'])
def test_png_modes_become_rgb(mode):
  assert decode(encode(photo().convert(mode), 'PNG')).shape == (32, 48, 3)


def test_transparent_is_white():
  clear = Image.new('RGBA', (4, 4), (9, 9, 9, 0))
  np.testing.assert_array_equal(decode(encode(clear, 'PNG')), 255)


def test_palette_transparency_is_white():
  image = Image.new('P', (4, 4), 0)
  image.putpalette([10, 20, 30] * 256)
  data = encode(image, 'PNG', transparency=0)
  np.testing.assert_array_equal(decode(data), 255)


def test_sixteen_bit_grey_is_scaled_not_clipped():
  values = np.linspace(0, 65535, 64).astype(np.uint16).reshape(8, 8)
  got = decode(encode(Image.fromarray(values), 'PNG'))
  np.testing.assert_allclose(got[..., 0], values / 257, atol=1)


def test_cmyk_jpeg_becomes_rgb():
  data = encode(photo().convert('CMYK'), 'JPEG', quality=95)
  assert np.abs(decode(data).astype(int) - np.asarray(photo())).mean() < 12


@pytest.mark.parametrize('kind', ['GIF', 'WEBP'])
def test_an_animation_is_its_first_frame(kind):
  frames = [Image.new('RGB', (8, 8), colour) for colour in ('red', 'blue')]
  data = encode(frames[0], kind, save_all=True, append_images=frames[1:])
  assert decode(data)[4, 4, 0] > 200


@pytest.mark.parametrize('kind', ['JPEG', 'PNG', 'WEBP', 'TIFF', 'BMP'])
def test_truncated_files_are_bad(kind):
  data = encode(photo(256, 256), kind)
  with pytest.raises(images.BadImage):
    images.open_image(data[:len(data) // 2]).decode()


def test_a_bomb_is_refused_before_decoding():
  header = struct.pack('>IIBBBBB', 60_000, 60_000, 8, 2, 0, 0, 0)
  chunk = lambda name, body: (
      struct.pack('>I', len(body)) + name + body
      + struct.pack('>I', zlib.crc32(name + body)))
  data = (b'\x89PNG\r\n\x1a\n' + chunk(b'IHDR', header)
          + chunk(b'IDAT', zlib.compress(b'\0' * 100)) + chunk(b'IEND', b''))
  with pytest.raises(images.BadImage, match='pixels|exceeds'):
    images.open_image(data)
  with pytest.raises(images.BadImage, match='max_pixels=100'):
    images.open_image(encode(photo(), 'PNG'), max_pixels=100)


def test_an_image_above_the_limit_is_never_decoded(monkeypatch):
  # The EXIF block of a PNG may follow its pixels: reading it decodes them.
  def fail(self):
    raise AssertionError('decoded')
  monkeypatch.setattr(PngImagePlugin.PngImageFile, 'load', fail)
  with pytest.raises(images.BadImage, match='max_pixels=100'):
    images.open_image(encode(photo(), 'PNG'), max_pixels=100)


@pytest.mark.parametrize('data, reason', [
    (b'', 'empty'), (b'hello, I am text', 'not an image'),
    (b'%!PS-Adobe-3.0 EPSF-3.0\n', 'not an image')])
def test_not_an_image(data, reason):
  with pytest.raises(images.BadImage, match=reason):
    images.open_image(data)


def test_pillow_logs_nothing_beside_what_it_raises(caplog):
  file = io.BytesIO()
  Image.new('RGB', (20, 12)).save(file, 'TIFF')
  samples = struct.pack('<HHLL', 277, 3, 1, 3)  # tag, short, one, samples
  data = file.getvalue()
  assert data.count(samples) == 1
  with pytest.raises(images.BadImage):
    images.open_image(data.replace(samples, struct.pack(
        '<HHLL', 277, 3, 1, 65407)))
  assert not caplog.records


def test_a_reduced_jpeg_keeps_its_oriented_size():
  exif = Image.Exif()
  exif[0x0112] = 6
  image = images.open_image(encode(photo(640, 320), 'JPEG', exif=exif))
  assert image.size == (320, 640)
  assert image.decode(4).size == (80, 160)


if 'DINOJAX_SHARED' in os.environ:  # a folder with more odd files

  def test_nothing_but_bad_image_comes_out_of_odd_files():
    folder = pathlib.Path(os.environ['DINOJAX_SHARED']) / 'data' / 'odd_files'
    decoded = refused = 0
    for path in sorted(p for p in folder.rglob('*') if p.is_file()):
      try:
        pixels = images.open_image(
            path.read_bytes(), max_pixels=50_000_000).decode()
        assert pixels.mode == 'RGB' and min(pixels.size) > 0
        decoded += 1
      except images.BadImage as error:
        assert error.reason
        refused += 1
    assert decoded > 200 and refused > 20, (decoded, refused)
