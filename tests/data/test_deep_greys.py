"""Ranges, limits and memory: what decoding takes, and what it gives."""

import contextlib
import ctypes
import os
import pickle
import struct
import subprocess
import sys
import threading

import numpy as np
from PIL import Image
import pytest

from dinojax.core import errors
from dinojax.data import crops
from dinojax.data import images
from dinojax.data import inspection
from dinojax.data import pipeline
from dinojax.data import record as record_lib
from tests.data import test_images as odd

BIG = (20_000, 9_500)  # more than Pillow's own limit


def encode(values, kind='TIFF', **options):
  return odd.encode(Image.fromarray(values), kind, **options)


def mean(values, **options):
  return odd.decode(encode(values.astype(np.float32)), **options).mean()


def test_one_pixel_does_not_change_the_range_of_a_float_image():
  ramp = np.linspace(0.3, 0.7, 4096).reshape(64, 64)
  before = mean(ramp)
  assert before == pytest.approx(127.5, abs=0.5)
  for value in (1.02, 300.0, -4.0, np.inf, -np.inf, np.nan, 3e38):
    ramp[3, 3] = value
    assert mean(ramp) == pytest.approx(before, abs=0.1), value


def test_floats_are_0_to_1_and_clipped():
  values = np.float32([[-1, 0, 0.5, 1, 2, np.nan, np.inf, -np.inf]])
  got = odd.decode(encode(values))[0, :, 0].tolist()
  assert got == [0, 0, 128, 255, 255, 0, 255, 0]


@pytest.mark.parametrize('kind, black, white', [
    (np.float32, -10, 30), (np.float32, 30, -10), (np.uint16, 0, 4095),
    (np.int32, 0, 10_000)])
def test_a_given_range_is_in_the_units_of_the_file(kind, black, white):
  ramp = np.linspace(black, white, 256).astype(kind)[None]
  got = odd.decode(encode(ramp), value_range=(black, white))[0, :, 0]
  np.testing.assert_allclose(got, np.arange(256), atol=1)


def test_eight_bits_have_no_other_range():
  data = odd.encode(odd.photo(), 'PNG')
  np.testing.assert_array_equal(
      odd.decode(data, value_range=(0, 10)), odd.decode(data))


class Greys:
  """Tiles of 12 bits in files of 16."""

  spec, classes = 'greys', ('a',)

  def __len__(self):
    return 8

  def __getitem__(self, index):
    ramp = np.linspace(0, 4095, 1024).reshape(32, 32) + index
    return record_lib.Record(encode(ramp.astype(np.uint16)), 0, str(index))


def test_the_range_reaches_training_evaluation_and_embed():
  spec = crops.Crops(num_global=1, global_px=16, num_local=0,
                     global_scale=(1, 1))
  batch = lambda **kw: next(pipeline.train_batches(pipeline.Plan(
      ((Greys(), 1),), seed=0, batch_size=4, group_images=4, crops=spec,
      masks=None, patch_px=8, **kw)))['global']
  prepared = lambda **kw: next(pipeline.records_in_order(
      Greys(), lambda image: np.asarray(image.decode()), **kw))['image']
  for read in (batch, prepared):
    assert read().max() < 18
    assert 100 < read(value_range=(0, 4095)).mean() < 150


@pytest.mark.parametrize('value, look', [
    (0, 'black'), (9, 'black'), (255, 'white'), (130, 'of one value')])
def test_images_with_nothing_to_see_are_noticed(value, look):
  empty = np.full((40, 40, 3), value, np.uint8)
  empty[3, 3] = 200  # as one hot pixel is
  assert inspection.emptiness(Image.fromarray(empty)) == look
  assert inspection.emptiness(odd.photo()) == ''
  assert inspection.sample(Greys(), 4).empty[0] == ('0', 'black')
  assert not inspection.sample(Greys(), 4, value_range=(0, 4095)).empty


@pytest.fixture(scope='module')
def poster():
  return odd.encode(Image.new('1', BIG, 1), 'TIFF', compression='group4')


def test_our_limit_alone_decides(poster, monkeypatch):
  with pytest.raises(images.BadImage, match=r'20000 × 9500 .*data\.max_pix'):
    images.open_image(poster)
  opened = images.open_image(poster, max_pixels=10**9)
  assert opened.size == BIG
  # Nothing is decoded when the limit is lower than Pillow's.
  monkeypatch.setattr(Image.Image, 'load', lambda self: 1 / 0)
  with pytest.raises(images.BadImage, match='raise it to 190000000'):
    images.open_image(poster, max_pixels=10**6)


def test_a_tile_larger_than_its_image_counts():
  tags = [(256, 64), (257, 64), (258, 8), (259, 8), (262, 1), (277, 1),
          (322, 8192), (323, 8192), (324, 8), (325, 0)]  # a tile of 64 Mpx
  data = b'II*\0' + struct.pack('<IH', 8, len(tags)) + b''.join(
      struct.pack('<HHII', tag, 4, 1, value) for tag, value in tags)
  with pytest.raises(images.BadImage, match=r'64 × 64 pixels, \d+ MiB'):
    images.open_image(data + bytes(4), max_pixels=10**7)


def test_the_picture_inside_an_icon_counts():
  inner = odd.encode(Image.new('RGB', (3000, 3000)), 'PNG')
  entry = bytes([16, 16, 0, 0, 1, 0, 32, 0]) + len(inner).to_bytes(
      4, 'little') + (22).to_bytes(4, 'little')
  data = b'\0\0\1\0\1\0' + entry + inner
  with pytest.raises(images.BadImage, match='3000 × 3000'):
    images.open_image(data, max_pixels=10**6)
  opened = images.open_image(data)
  assert opened.size == opened.decode().size == (3000, 3000)


MEASURE = '''
import os, pathlib, pickle, sys
from dinojax.data import images
def memory(key):
  for line in pathlib.Path('/proc/self/status').read_text().splitlines():
    if line.startswith(key):
      return int(line.split()[1]) * 1024
for name, data in pickle.load(sys.stdin.buffer):
  if not os.fork():  # each begins with the same memory
    before = memory('VmRSS')
    opened = images.open_image(data)
    opened.decode()
    print(name, memory('VmHWM') - before, opened.bytes_needed, flush=True)
    os._exit(0)
  os.wait()
'''
SIDE = 1600


def picture(mode):
  ramp = np.add.outer(np.arange(SIDE), np.arange(SIDE)) % 256
  kind = {'I;16': np.uint16, 'I': np.int32, 'F': np.float32}.get(mode)
  if kind:
    return Image.fromarray(ramp.astype(kind))
  grey = Image.fromarray(ramp.astype(np.uint8))
  if mode in ('RGBA', 'LA'):
    grey = grey.convert(mode[:-1])
    grey.putalpha(255)
    return grey
  return grey.convert(mode)


if os.path.exists('/proc/self/status'):

  turned = Image.Exif()
  turned[0x0112] = 6
  QUICK = [(mode, 'TIFF', {'compression': 'packbits'}) for mode in (
      'L', 'RGBA', 'CMYK', 'I;16', 'I', 'F')] + [
          ('RGB', 'JPEG', {'exif': turned}), ('RGB', 'PPM', {})]
  EVERY = [(mode, 'TIFF', {'exif': turned}) for mode in (
      'L', 'RGB', 'RGBA', 'LA', 'P', '1', 'CMYK', 'I;16', 'I', 'F')] + [
          (mode, 'PNG', {'exif': turned}) for mode in (
              'L', 'RGB', 'RGBA', 'LA', 'P', '1', 'I;16')] + [
          (mode, kind, options) for kind in ('WEBP', 'AVIF')
          for mode in ('RGB', 'RGBA') for options in ({}, {'exif': turned})
      ] + [(mode, 'JPEG2000', {}) for mode in ('L', 'RGB', 'RGBA', 'I;16')
           ] + [('P', 'GIF', {}), ('RGB', 'BMP', {}), ('RGBA', 'TGA', {}),
                ('F', 'PPM', {}), ('CMYK', 'JPEG', {'exif': turned})]

  @pytest.mark.parametrize('cases', [
      QUICK, pytest.param(EVERY, marks=pytest.mark.slow)])
  def test_memory_a_pixel_is_what_the_limit_counts(cases):
    files = [(f'{kind}/{mode}', odd.encode(picture(mode), kind, **options))
             for mode, kind, options in cases]
    out = subprocess.run(
        [sys.executable, '-c', MEASURE], input=pickle.dumps(files),
        capture_output=True, check=True,
        env=os.environ | {'MALLOC_MMAP_THRESHOLD_': '65536'})
    lines = [line.split() for line in out.stdout.decode().splitlines()]
    assert len(lines) == len(cases)
    for name, taken, counted in lines:
      # Strips, tables of decoders and their code: the same for any size.
      assert int(taken) < 1.05 * int(counted) + 14 * 2**20, name
      if cases is QUICK:
        assert int(counted) <= 8 * SIDE**2, name


def test_a_decoder_may_raise_anything_but_stops_pass(monkeypatch):
  data = odd.encode(odd.photo(), 'PNG')

  def raises(error):
    def load(self):
      raise error
    monkeypatch.setattr(Image.Image, 'load', load)
    images.open_image(data).decode()

  monkeypatch.setattr('PIL.PngImagePlugin.PngImageFile.load',
                      lambda self: Image.Image.load(self))
  for error in (RuntimeError('codec'), SystemError('x'), AssertionError(),
                ZeroDivisionError(), RecursionError(), MemoryError()):
    with pytest.raises(images.BadImage, match=type(error).__name__):
      raises(error)
  for stop in (KeyboardInterrupt, SystemExit):
    with pytest.raises(stop):
      raises(stop())
  monkeypatch.setattr(images, '_can_have', lambda num_bytes: False)
  with pytest.raises(errors.UserError, match='no memory for an image'):
    raises(MemoryError())


def test_libtiff_writes_nothing_past_our_log(capfd):
  data = bytearray(odd.encode(
      Image.effect_noise((64, 64), 90).convert('1'), 'TIFF',
      compression='group4'))
  for i in range(8, 200, 7):
    damaged = bytes(data[:i]) + bytes([data[i] ^ 0x55]) + bytes(data[i + 1:])
    with contextlib.suppress(images.BadImage):
      images.open_image(damaged).decode()
  ctypes.CDLL(None).fflush(None)
  assert capfd.readouterr().err == ''


def test_threads_may_have_different_limits(poster):
  results = []

  def attempt(limit):
    try:
      results.append(images.open_image(poster, max_pixels=limit).size)
    except images.BadImage:
      results.append(None)

  threads = [threading.Thread(target=attempt, args=(limit,))
             for limit in (10**9, 10**6) * 4]
  for thread in threads:
    thread.start()
  for thread in threads:
    thread.join()
  assert sorted(map(bool, results)) == [False] * 4 + [True] * 4
