"""`dinojax predict`: maps of images by heads of ours and of others."""

import dataclasses
import json

import jax
import numpy as np
from PIL import Image
import pytest

from dinojax import commands
from dinojax.core import errors
from dinojax.evals import published_heads
from dinojax.evals import stored_heads
from dinojax.interop import files
from dinojax.interop import store
from dinojax.interop import translate
from dinojax.interop.heads import detector as detector_tables
from dinojax.interop.heads import dpt as dpt_tables
from dinojax.interop.heads import linear as linear_tables
from dinojax.interop.heads import mask2former as mask2former_tables
from dinojax.models import vit
from dinojax.models.dense import box_decoder
from dinojax.models.dense import detector
from dinojax.models.dense import dpt
from dinojax.models.dense import eomt
from dinojax.models.dense import mask2former
from dinojax.models.dense import mask_decoder
from dinojax.probes import head as head_lib
from dinojax.probes.tasks import dense
from dinojax.probes.tasks import depth
from dinojax.probes.tasks import detect
from dinojax.probes.tasks import eomt as eomt_task
from dinojax.probes.tasks import mask2former as mask2former_task
from dinojax.probes.tasks import masks
from dinojax.probes.tasks import segment
from dinojax.runs import models
from dinojax.runs import predictions
from tests import forked
from tests.interop import cases

CONFIG = vit.ViTConfig(16, 4, 2, 4, image_px=16)
SIZES = ((48, 40), (40, 56), (48, 40))
KINDS = ('cat', 'dog', 'fish')


@pytest.fixture(scope='module')
def model(tmp_path_factory):
  folder = tmp_path_factory.mktemp('model')
  store.save(str(folder), cases.weights(CONFIG))
  return str(folder)


@pytest.fixture(scope='module')
def images(tmp_path_factory):
  """Three images in two folders, of two with one stem, and no image."""
  folder = tmp_path_factory.mktemp('images')
  rng = np.random.default_rng(0)
  (folder / 'a').mkdir()
  for name, size in zip(('a/x.png', 'a/x.jpg', 'y.png'), SIZES, strict=True):
    low = rng.integers(0, 256, (4, 4, 3), np.uint8)
    Image.fromarray(low).resize(size).save(folder / name)
  (folder / 'bad.png').write_bytes(b'nothing')
  return folder


def task_of(kind):
  pixels = dense.Pixels(patch_px=CONFIG.side_px)
  if kind == 'segmentation':
    return segment.Segment(num_outputs=3, width=16, pixels=pixels)
  if kind == 'depth':
    return depth.Depth(num_outputs=8, width=16, pixels=pixels)
  if kind == 'masks':
    return masks.Masks(
        decoder=mask_decoder.Config(16, 2, 3, patch_px=4, num_queries=4,
                                    num_blocks=1, num_levels=2),
        layers=(1, 3), anneal=((0, 10),), pixels=pixels)
  if kind == 'mask2former':
    sizes = mask2former.of_sizes(16, 3, patch_px=4, hidden=32, num_queries=4,
                                 num_pixel_layers=1, num_layers=2)
    return mask2former_task.Mask2Former(
        decoder=sizes, layers=(0, 1, 2, 3),
        pixels=dataclasses.replace(pixels, patch_px=32))
  if kind == 'eomt':
    return eomt_task.Eomt(
        decoder=eomt.Config(CONFIG, 3, num_queries=4, num_blocks=2),
        anneal=((0, 10), (5, 10)), pixels=pixels)
  if kind == 'detector':
    return detect.Detect(
        decoder=detector.Config(
            (16,) * 4, box_decoder.Config(3, 32, 4, 24, 1, 8, 4),
            num_queries=10, num_extra=10, num_encoder_layers=1,
            encoder_ffn=24, box_px=8.0), layers=(0, 1, 2, 3), pixels=pixels)
  of = {'depth_dpt': depth.DptDepth, 'relative_depth': depth.RelativeDepth}
  return of[kind](
      head=dpt.Config(channels=4, projected=(2, 3, 4, 5), num_outputs=1,
                      readout='project', hidden=4),
      layers=(0, 1, 2, 3), place='raw', max_depth=80.0, pixels=pixels)


def made(kind, model, weights=''):
  """A head of random weights, none of them zero."""
  task = task_of(kind)
  widths = tuple(next(iter(task.choices.values())).widths(CONFIG))
  rng = np.random.default_rng(1)
  draw = lambda leaf: np.float32(rng.uniform(0.2, 1, leaf.shape))
  parts = jax.tree.map(draw, head_lib.shapes_of(task, widths))
  if 'kernel' in parts['params']:  # else all pixels are of one class
    shape = parts['params']['kernel'].shape
    parts['params']['kernel'] = np.float32(rng.normal(size=shape))
  return head_lib.Head(
      task, parts['params'], parts['stats'],
      head_lib.Origin(model, weights, widths),
      () if 'depth' in kind else KINDS,
      {'views': {'short_px': 32, 'crop_px': 32, 'stride_px': 16}})


def predict(model, head, images, out, *words):
  return commands.run('predict', [
      f'--model={model}', f'--head={head}', f'--source=folder:{images}',
      f'--out={out}', f'--compile_cache={forked.CACHE}', *words])


def lines(out):
  return [json.loads(line) for line in
          (out / predictions.LINES).read_text().splitlines()]


@pytest.mark.parametrize('kind', [
    'segmentation', 'depth_dpt', *(pytest.param(
        kind, marks=pytest.mark.slow)  # as segmentation's
                                   for kind in ('masks', 'eomt'))])
def test_maps_are_written_once_and_what_is_lost_is_told(
    kind, model, images, tmp_path, capsys):
  stored_heads.save(str(tmp_path / 'head'), made(kind, model))
  out = tmp_path / 'out'
  assert predict(model, tmp_path / 'head', images, out, '--short_px=32') == 0
  text = capsys.readouterr().out
  assert 'left out: bad.png' in text and '1 could not be read' in text
  rows = {row['name']: row for row in lines(out)}
  assert set(rows) == {'a/x.png', 'a/x.jpg', 'y.png'}
  assert rows['y.png']['map'] == 'maps/y.png'
  assert rows['a/x.jpg']['map'] == 'maps/a/x.jpg.png'
  for name, size in zip(('a/x.png', 'a/x.jpg', 'y.png'), SIZES, strict=True):
    array = np.asarray(Image.open(out / rows[name]['map']))
    assert array.shape == size[::-1]
    assert Image.open(out / rows[name]['picture']).width > size[0]
    if kind != 'depth_dpt':
      assert array.dtype == np.uint8 and set(np.unique(array)) <= {0, 1, 2}
    else:
      assert rows[name]['metres_per_unit'] == 0.01  # 80 m in 16 bits
      assert array.dtype == np.uint16 and 0 < array.min()
  # What is there stays; what is not is made.
  gone = lines(out)[-1]
  (out / predictions.LINES).write_text(''.join(
      json.dumps(row) + '\n' for row in lines(out)[:-1]))
  (out / gone['map']).unlink()
  kept = out / lines(out)[0]['map']
  before = kept.stat().st_mtime_ns
  assert predict(model, tmp_path / 'head', images, out, '--short_px=32') == 0
  assert (out / gone['map']).exists() and len(lines(out)) == 3
  assert kept.stat().st_mtime_ns == before
  assert predict(model, tmp_path / 'head', images, out, '--short_px=32') == 0
  assert '3 images in' in capsys.readouterr().out and len(lines(out)) == 3
  # Another size is another prediction.
  assert predict(model, tmp_path / 'head', images, out, '--short_px=48') == 2
  assert 'holds predictions of another head' in capsys.readouterr().err


def test_heights_look_at_images_as_they_are(model):
  """Metres hang on the size of a pixel, unless another is asked for."""
  head = made('depth_dpt', model)
  head.facts['views'] = {'flips': False, 'native': True}
  of = lambda **values: predictions.views_of(head, predictions.Request(
      model, 'head', 'x', 'out', **values), CONFIG.side_px)
  assert of().sizes((48, 40)) == [(48, 40)] and not of().flips
  assert of(short_px=32).sizes((48, 40)) != [(48, 40)]


@pytest.mark.parametrize('local', [True, False])
def test_a_head_comes_back_as_it_was(local, model, tmp_path, monkeypatch):
  """Also of storage where files are written elsewhere first."""
  if not local:
    monkeypatch.setattr(store.atomic, 'is_local', lambda path: False)
  # Of texts: evals/test_alignment.py.
  for kind in sorted({*head_lib.KINDS} - {'text'}):
    head = made(kind, model, 'digest')
    stored_heads.save(str(tmp_path), head)
    again = stored_heads.load(str(tmp_path))
    assert dataclasses.replace(again, params=(), stats=()) == (
        dataclasses.replace(head, params=(), stats=()))
    jax.tree.map(np.testing.assert_array_equal, (again.params, again.stats),
                 (head.params, head.stats))
    assert again.kind == kind


def test_heads_that_do_not_fit_are_sentences(model, images, tmp_path, capsys):
  head = made('segmentation', 'runs/other', 'digest')
  stored_heads.save(str(tmp_path / 'head'), head)
  other = tmp_path / 'other'
  store.save(str(other), cases.weights(dataclasses.replace(
      CONFIG, embed_dim=32)))
  for words, text in (
      ((other, tmp_path / 'head'), 'reads layers of 16 values and those of'),
      ((model, images), 'holds no head: give a folder in heads/ of'),
      ((model, tmp_path / 'nowhere'), 'nowhere'),
      ((model, tmp_path / 'head', '--max_depth=10'), 'are of published heads')):
    assert predict(*words[:2], images, tmp_path / 'out', *words[2:]) == 2
    assert text in capsys.readouterr().err
  assert not (tmp_path / 'out' / predictions.LINES).exists()
  warning = head.check(models.load(model), 'another')
  assert 'trained on runs/other, whose weights are not those' in warning
  deep = dataclasses.replace(head, task=dataclasses.replace(
      head.task, layers=(7,)))
  with pytest.raises(errors.UserError, match='give the model that it was trai'):
    deep.check(models.load(model), '')
  (tmp_path / 'head' / stored_heads.TENSORS).write_bytes(
      b'\0' * 100)
  with pytest.raises(errors.UserError):
    stored_heads.load(str(tmp_path / 'head'))


def published(kind, model, folder, prefix='', name='head'):
  """A file as others publish it, of a head of ours, which is returned too."""
  if kind == 'segmentation_v2':
    head, table = made('segmentation', model), linear_tables.table(
        linear_tables.NAMES[kind])
  elif kind == 'depth_v3':
    head, table = made('depth', model), linear_tables.table(
        linear_tables.NAMES[kind])
  elif kind == 'm2f':
    head = made('mask2former', model)
    table = mask2former_tables.table(head.task.decoder)
  elif kind == 'detector':
    head = made('detector', model)
    table = detector_tables.table(head.task.decoder)
  else:
    head = made('depth_dpt', model)
    table = dpt_tables.table(head.task.head, getattr(dpt_tables, kind))
  state = translate.to_theirs(
      {'params': head.params, 'stats': head.stats}, table)
  path = folder / f'{name}.safetensors'
  files.write_safetensors(str(path), {
      prefix + key: value for key, value in state.items()})
  return path, head


@pytest.mark.parametrize('kind, prefix, name', [
    ('segmentation_v2', 'decode_head.', 'ade20k'), ('depth_v3', '', 'head'),
    ('META', 'decode_head.', 'dinov2_vits14_nyu_dpt_head'),
    ('HF_DPT', '', 'kitti'), ('m2f', '', 'ade20k'), ('detector', '', 'coco')])
def test_published_heads_are_read(kind, prefix, name, model, tmp_path):
  path, head = published(kind, model, tmp_path, prefix, name)
  again = published_heads.read(str(path), models.load(model))
  jax.tree.map(np.testing.assert_array_equal, (again.params, again.stats),
               (head.params, head.stats))
  assert again.kind == head.kind
  if kind in ('segmentation_v2', 'm2f', 'detector'):
    assert again.classes == ('class 0', 'class 1', 'class 2')
  else:
    assert again.task.max_depth == (80.0 if name == 'kitti' else 10.0)
  if head.kind == 'depth_dpt':
    assert again.task.layers == (0, 1, 2, 3) and again.task.place == 'raw'
    assert again.task.head == head.task.head


def test_published_heads_that_do_not_fit(model, tmp_path):
  backbone = models.load(model)
  path, _ = published('META', model, tmp_path)
  with pytest.raises(errors.UserError, match='does not say how far its depths'):
    published_heads.read(str(path), backbone)
  state = files.read(str(path))
  state.pop('convs.1.conv.weight')
  state['spare'] = np.zeros(3, np.float32)
  files.write_safetensors(str(path), state)
  with pytest.raises(errors.UserError, match=r'1 missing: convs.1.conv.weight'
                     r'; 1 unexpected: spare'):
    published_heads.read(str(path), backbone, max_depth=10.0)
  files.write_safetensors(str(path), {'x': np.zeros(3, np.float32)})
  with pytest.raises(errors.UserError, match='holds no head that is known .it'):
    published_heads.read(str(path), backbone)
  path, _ = published('segmentation_v2', model, tmp_path)
  (tmp_path / 'names.txt').write_text('a\nb\n')
  with pytest.raises(errors.UserError, match='has 2 names and the head 3 clas'):
    published_heads.read(str(path), backbone,
                         classes=str(tmp_path / 'names.txt'))


def test_a_segmentor_is_of_its_backbone(model, tmp_path):
  """Tensors of a ViT in the file are left, those of DINOv2's are refused."""
  path, head = published('m2f', model, tmp_path)
  state = files.read(str(path))
  files.write_safetensors(str(path), state | {
      'segmentation_model.0.backbone.cls_token': np.zeros(3, np.float32),
      'segmentation_model.0.norm1.num_batches_tracked': np.zeros(1, np.int64)})
  again = published_heads.read(str(path), models.load(model))
  assert again.task.layers == (0, 1, 2, 3) and again.task.place == 'normed'
  assert again.task.pixels.patch_px == 32  # whole patches, and whole strides
  # Widths that follow from others are told.
  assert again.task.decoder == dataclasses.replace(
      head.task.decoder, adapter=dataclasses.replace(
          head.task.decoder.adapter, values=8, hidden=4))
  assert again.facts['views']['crop_px'] == 896
  other = tmp_path / 'other'
  store.save(str(other), cases.weights(dataclasses.replace(
      CONFIG, embed_dim=32)))
  with pytest.raises(errors.UserError, match='of a ViT of width 16, and .* 32'):
    published_heads.read(str(path), models.load(str(other)))
  files.write_safetensors(str(path), {
      'decode_head.transformer_decoder.layers.0.x': np.zeros(3, np.float32),
      'backbone.cls_token': np.zeros(3, np.float32)})
  with pytest.raises(errors.UserError, match='the Mask2Former of DINOv2, who'):
    published_heads.read(str(path), models.load(model))


@pytest.mark.slow  # its program; the head of a folder goes the same way
def test_a_published_segmentor_predicts(model, images, tmp_path):
  path, _ = published('m2f', model, tmp_path)
  out = tmp_path / 'out'
  assert predict(model, path, images, out, '--short_px=64') == 0
  for row in lines(out):
    array = np.asarray(Image.open(out / row['map']))
    assert array.dtype == np.uint8 and array.max() < 3
    assert array.shape in [size[::-1] for size in SIZES]
  assert len(lines(out)) == 3


def test_images_below_what_a_segmentor_takes_are_sentences(
    model, images, tmp_path, capsys):
  path, _ = published('m2f', model, tmp_path)
  assert predict(model, path, images, tmp_path / 'out', '--short_px=32') == 2
  assert 'such as 64 × 64' in capsys.readouterr().err
