"""Text alignment from a config to numbers: training, resuming, zero-shot."""

import json

import jax
import numpy as np
from PIL import Image
import pytest

from configs import dinotxt
import dinojax
from dinojax import commands
from dinojax.core import errors
from dinojax.data import tokenizers
from dinojax.evals import aligned
from dinojax.evals import aligned_heads
from dinojax.evals import alignment
from dinojax.evals import class_texts
from dinojax.evals import stored_heads
from dinojax.interop import files
from dinojax.interop import store
from dinojax.interop.heads import text as tables
from dinojax.models import vit
from dinojax.parallel import mesh as mesh_lib
from dinojax.probes.tasks import align
from dinojax.runs import alignment as runs
from dinojax.runs import models
from dinojax.train import settings as settings_lib
from tests import forked
from tests.interop import cases

CONFIG = vit.ViTConfig(16, 2, 2, 8, image_px=32, num_registers=1)
COLORS = {'red': (220, 40, 30), 'green': (40, 180, 60), 'blue': (30, 60, 220),
          'white': (240, 240, 240)}
WORDS = ('a {} square', 'all of it is {}', 'only {} here')


@pytest.fixture(scope='module')
def world(tmp_path_factory):
  """A backbone, and images of one colour with captions and as classes."""
  root = tmp_path_factory.mktemp('world')
  store.save(str(root / 'model'), cases.weights(CONFIG))
  rng, lines = np.random.default_rng(0), ['image,caption']
  for name, color in COLORS.items():
    (root / 'classes' / name).mkdir(parents=True)
    for i in range(6):
      pixels = rng.normal(color, 12, (40, 40, 3)).clip(0, 255)
      place = f'classes/{name}/{i}.png'
      Image.fromarray(pixels.astype(np.uint8)).save(root / place)
      lines += [f'{place},{words.format(name)}' for words in WORDS]
  (root / 'captions.csv').write_text('\n'.join(lines))
  return root


def config(world, words='smoke', **values):
  c = dinotxt.get_config(words)
  c.alignment.backbone = str(world / 'model')
  c.data.train = c.data.validation = f'csv:{world}/captions.csv'
  c.log.tensorboard = False
  for name, value in values.items():
    section, _, field = name.partition('__')
    c[section][field] = value
  return c


@pytest.fixture(scope='module')
def run(world, tmp_path_factory):
  """A run that tells colours apart."""
  folder = tmp_path_factory.mktemp('run') / 'run'
  result = dinojax.train(config(
      world, alignment__total_steps=60.0, alignment__every_steps=30.0,
      alignment__learning_rate=3e-3, checkpoint__every_steps=30.0,
      alignment__batch_size=24, alignment__warmup_steps=5.0,
      log__every_steps=20), folder, compile_cache=forked.CACHE)
  assert result.finished and result.step == 60
  return folder


@pytest.mark.slow  # a run of half a minute; probes/test_align.py learns too
def test_what_it_learns_is_measured_and_kept(run, world):
  scores = json.loads((run / 'results.json').read_text())['scores']
  # Six images share their captions: five others come before.
  assert scores['retrieval/text_to_image_R10'] > 80, scores
  assert stored_heads.is_head(str(run / runs.HEAD))
  assert dinojax.train(config(
      world, alignment__total_steps=60.0, alignment__every_steps=30.0,
      alignment__learning_rate=3e-3, checkpoint__every_steps=30.0,
      alignment__batch_size=24, alignment__warmup_steps=5.0,
      log__every_steps=20), run, compile_cache=forked.CACHE).step == 60
  with pytest.raises(errors.UserError, match='alignment.batch_size'):
    dinojax.train(config(world, alignment__total_steps=60.0), run)


@pytest.mark.slow  # it needs that run
def test_classes_are_told_by_their_names(run, world, tmp_path, capsys):
  assert commands.run('evaluate', [
      f'--model={world}/model', '--protocols=zero_shot,captions',
      f'--config.zero_shot.head={run}/head', '--config.zero_shot.crop_px=32',
      '--config.zero_shot.resize_px=32', f'--test=folder:{world}/classes',
      f'--config.captions.head={run}/head', '--config.captions.crop_px=32',
      '--config.captions.resize_px=36',
      f"--config.captions.test=('csv:{world}/captions.csv',)",
      f'--out={tmp_path}', f'--compile_cache={forked.CACHE}']) == 0
  rows = {(row['protocol'], row['metric']): row['value'] for row in map(
      json.loads, (tmp_path / 'results.jsonl').read_text().splitlines())}
  assert rows['zero_shot', 'top-1'] > 80, rows
  assert rows['captions', 'text to image R@10'] > 80, rows


@pytest.mark.slow  # it needs that run
def test_patches_are_named_by_texts(run, world, tmp_path):
  """Halves of two colours, of any width."""
  root = tmp_path / 'masks'
  for part in ('images', 'masks'):
    (root / part).mkdir(parents=True)
  (root / 'classes.txt').write_text('\n'.join(COLORS))
  rng = np.random.default_rng(1)
  for i, size in enumerate(((64, 48), (48, 72))):
    truth = np.zeros(size[::-1], np.uint8)
    truth[:, size[0] // 2:] = 1 + i
    pixels = np.array(list(COLORS.values()))[truth]
    Image.fromarray((pixels + rng.normal(0, 8, pixels.shape)).clip(
        0, 255).astype(np.uint8)).save(root / 'images' / f'{i}.png')
    Image.fromarray(truth).save(root / 'masks' / f'{i}.png')
  section = '--config.open_vocabulary'
  assert commands.run('evaluate', [
      f'--model={world}/model', '--protocols=open_vocabulary',
      f'{section}.head={run}/head', f"{section}.test=('masks:{root}',)",
      f'{section}.short_px=48', f'{section}.window_px=32',
      f'{section}.stride_px=16', f'--out={tmp_path}/out',
      f'--compile_cache={forked.CACHE}']) == 0
  rows = [json.loads(line) for line in (
      tmp_path / 'out/results.jsonl').read_text().splitlines()]
  values = {row['metric']: row['value'] for row in rows}
  assert set(values) == {'mIoU', 'mAcc', 'aAcc'} and values['aAcc'] > 30, values


@pytest.mark.slow  # it needs that run
def test_texts_and_images_in_one_space(run, world):
  both = dinojax.load_aligned(world / 'model', run / runs.HEAD)
  text = both.texts([words.format(name) for name in COLORS
                     for words in WORDS[:1]])
  image = both.images([world / f'classes/{name}/0.png' for name in COLORS],
                      resize_px=32, crop_px=32)
  unit = lambda x: x / np.linalg.norm(x, axis=1, keepdims=True)
  cosines = unit(text) @ unit(image).T
  assert (cosines.argmax(1) == np.arange(4)).mean() >= 0.75, cosines
  many = both.texts(['a red square'] * 300)  # more than go at a time
  np.testing.assert_allclose(many, np.tile(text[:1], (300, 1)), atol=1e-5)
  assert both.texts([]).shape == (0, text.shape[1])
  # Long texts are cut, and a text may be anything but empty of tokens.
  assert np.isfinite(both.texts(['red ' * 3000, '', '<|endoftext|>'])).all()


@pytest.mark.slow  # it needs that run
def test_published_files_are_read(run, world, tmp_path):
  model = models.load(str(world / 'model'))
  both = aligned_heads.read(str(run / runs.HEAD), model)
  task, params = both.task, jax.device_get(both.params)
  vocabulary = f'json:{run}/tokenizer.json'
  state = tables.to_v3(params, task.text, task.vision)
  path = tmp_path / 'head.safetensors'
  files.write_safetensors(str(path), state)
  with pytest.raises(errors.UserError, match='has no vocabulary: give tok'):
    aligned_heads.read(str(path), model)
  again = aligned_heads.read(str(path), model, vocabulary)
  assert again.task.vision.embed_dim == task.vision.embed_dim
  jax.tree.map(np.testing.assert_array_equal, jax.device_get(again.params),
               params)
  parts = tables.to_v2(params, task.text, task.vision)
  for name, part in zip(('text', 'vision'), parts, strict=True):
    files.write_safetensors(str(tmp_path / f'{name}.safetensors'), part)
  place = f'{tmp_path}/vision.safetensors,{tmp_path}/text.safetensors'
  two = aligned_heads.read(place, model, vocabulary)
  jax.tree.map(np.testing.assert_array_equal, jax.device_get(
      two.params['text']), params['text'])
  state.pop('logit_scale')
  files.write_safetensors(str(path), state)
  with pytest.raises(errors.UserError, match='is no head of text alignment'):
    aligned_heads.read(str(path), model, vocabulary)


def test_wrong_use_is_a_sentence(world, tmp_path):
  for values, words in (
      (dict(data__train='csv:nowhere.csv'), 'nowhere.csv'),
      (dict(alignment__backbone='nowhere'), 'nowhere'),
      (dict(text__num_heads=3), 'text.width=32 is not divisible by'),
      (dict(vision__use_cls=False, vision__use_patches=False), 'both False'),
      (dict(crops__px=33), 'set crops.px=32'),
      (dict(alignment__batch_size=3), 'not divisible by 8 devices'),
      (dict(alignment__batch_size=16, alignment__group_images=3),
       'group_images=3 does not divide the 2 images'),
      (dict(text__tokenizer='clip:nowhere.gz'), 'nowhere.gz'),
      (dict(checkpoint__keep_best=True, checkpoint__every_steps=3.0),
       'retrieval is measured every 2 steps, and checkpoints are saved ever'),
      (dict(text__num_ids=20), 'vocabulary of 20 ids')):
    with pytest.raises(errors.UserError, match=words):
      dinojax.train(config(world, **values), tmp_path / 'wrong')
  with pytest.raises(errors.UserError, match='of text alignment'):
    settings_lib.read(config(world))
  model = models.load(str(world / 'model'))
  with pytest.raises(errors.UserError, match='holds no head|nowhere'):
    aligned_heads.read(str(tmp_path / 'nowhere'), model, 'json:x')
  words = tokenizers.Tokenizer(tokenizers.JsonWords(tokenizers.train(
      ['a red square'], 300)))
  with pytest.raises(errors.UserError, match=r'has \d+ ids, and the text t'):
    aligned.check(align.Align(
        text=align.tower.Config(vocabulary=5),
        vision=align.vision_head.Config(), depth=2), words)
  file = tmp_path / 'templates.txt'
  file.write_text('a photo of a {}\nno place\n')
  with pytest.raises(errors.UserError, match='1 lines without one {}'):
    class_texts.sentences(str(file))
  assert class_texts.names(None, ['traffic_light'], '') == ('traffic light',)
  with pytest.raises(errors.UserError, match='without names .*class 0'):
    class_texts.names(None, ['class 0', 'class 1'], 'the set')
  file.write_text('one\n')
  with pytest.raises(errors.UserError, match='1 names, and the set 2 classes'):
    class_texts.names(str(file), ['a', 'b'], 'the set')


def test_the_full_size_step_traces():
  """Heads as published on a ViT-L, 8,192 images on 8 devices, by shapes."""
  settings = alignment.read(config_of_shapes())
  mesh = mesh_lib.make(2, 4)
  large = vit.ViTConfig(1024, 24, 16, 16, num_registers=4, position='rope')
  with mesh_lib.activate(mesh):
    net = alignment.backbone_lib.network.functional(
        alignment.backbone_lib.families.make, large, mesh)
    model = alignment.backbone_lib.Backbone(
        large, net.shapes, mesh, mean=(0.5,) * 3, std=(0.5,) * 3)
    task = alignment.task(settings, model, 49_408)
    assert task.text.embed_dim == task.vision.embed_dim == 2048
    shapes = {name: net.shapes for name, net in task.nets(mesh).items()}
  count = lambda tree: sum(x.size for x in jax.tree.leaves(tree))
  assert 500e6 < count(shapes['text']) < 560e6
  assert 20e6 < count(shapes['vision']) < 30e6


def config_of_shapes():
  c = dinotxt.get_config()
  c.alignment.backbone, c.data.train = 'somewhere', 'csv:somewhere'
  return c
