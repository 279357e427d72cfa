"""Published EoMT models: as a backbone, and as a head on it."""

import dataclasses
import functools
import json

import jax
import numpy as np
from PIL import Image
import pytest

from bench import peers
from dinojax import commands
from dinojax.core import errors
from dinojax.core import tree
from dinojax.evals import published_heads
from dinojax.evals import stored_heads
from dinojax.interop import files
from dinojax.interop import reading
from dinojax.interop import store
from dinojax.interop import translate
from dinojax.interop.heads import eomt as tables
from dinojax.models import vit
from dinojax.models.dense import eomt
from dinojax.runs import conversions
from dinojax.runs import models
from dinojax.runs import predictions
from tests import close
from tests import forked
from tests.interop import cases

SIDE, PATCH = 32, 8
SIZES = dict(hidden_size=32, num_hidden_layers=3, num_attention_heads=2,
             image_size=SIDE, patch_size=PATCH, num_blocks=2, num_queries=5,
             num_register_tokens=2, num_labels=4, num_upscale_blocks=1)
V2 = vit.ViTConfig(32, 3, 2, PATCH, image_px=SIDE, num_registers=2,
                   interpolate_offset=0.0, interpolate_antialias=True)
V3 = vit.ViTConfig(32, 3, 2, PATCH, position='rope', num_registers=2,
                   mask_k_bias=True, norm_epsilon=1e-5)


def theirs(form):
  """A random model of transformers, none of its weights at its start."""
  import torch
  package = peers.transformers()
  torch.manual_seed(0)
  model = package.EomtForUniversalSegmentation(package.EomtConfig(
      mlp_ratio=2, **SIZES)) if form == 'dinov2' else (
          package.EomtDinov3ForUniversalSegmentation(package.EomtDinov3Config(
              intermediate_size=64, layer_norm_eps=1e-5, **SIZES)))
  for name, value in model.named_parameters():
    torch.nn.init.normal_(value, std=0.15)
    if name.endswith('norm.weight') or 'lambda1' in name:
      value.data += 1
  return model.eval()


def saved(model, folder):
  """A folder of transformers, with the preparation of images."""
  processor = peers.transformers().EomtImageProcessor(
      size={'shortest_edge': SIDE, 'longest_edge': None}, do_split_image=True)
  model.save_pretrained(folder)
  processor.save_pretrained(folder)
  return processor


def answers(model, head, images):
  """The last prediction of a head, and the backbone's normed patches."""
  wanted = head.task.choices
  layer, = model.run(images, wanted)['patches']
  task = head.on(model).task
  return jax.jit(lambda params: task.outputs(
      {'params': params, 'stats': {}}, [layer], {}, None)[0])(head.params)[-1]


@pytest.mark.torch
@pytest.mark.parametrize('form, masked', [
    ('dinov2', False), ('dinov3', True)])
def test_it_predicts_as_transformers_does(form, masked, tmp_path):
  import torch
  other = theirs(form)
  other.attn_mask_probs.fill_(float(masked))
  saved(other, tmp_path)
  model = models.load(tmp_path)
  head = published_heads.read(str(tmp_path), model)
  assert head.kind == 'eomt' and head.task.decoder.masked == masked
  assert head.check(model, head.origin.weights) is None
  images = np.random.default_rng(0).normal(
      size=(2, SIDE, SIDE, 3)).astype(np.float32)
  with torch.no_grad():
    want = other(torch.tensor(images.transpose(0, 3, 1, 2)))
  got = answers(model, head, images)
  close.close(got.classes, want.class_queries_logits.numpy(), of_largest=1e-4)
  close.close(got.masks, want.masks_queries_logits.numpy(), of_largest=1e-4)


@pytest.mark.slow  # its network is compared above
@pytest.mark.torch
def test_maps_are_those_of_transformers(tmp_path):
  """The same windows, and scores at their pixels, one after the other."""
  import torch
  other = theirs('dinov2')
  other.attn_mask_probs.fill_(0)
  for layer in (other.class_predictor, other.query, other.mask_head.fc3):
    layer.weight.data *= 10  # several classes, each somewhere
  processor = saved(other, tmp_path / 'model')
  low = np.random.default_rng(1).integers(0, 256, (4, 6, 3), np.uint8)
  picture = Image.fromarray(low).resize((52, SIDE))
  (tmp_path / 'images').mkdir()
  picture.save(tmp_path / 'images/a.png')
  inputs = processor(images=picture, return_tensors='pt')
  with torch.no_grad():
    out = other(**inputs)
  want, = processor.post_process_semantic_segmentation(
      out, target_sizes=[(SIDE, 52)])
  assert len(inputs['pixel_values']) == 2 and len(np.unique(want)) > 2
  place = str(tmp_path / 'model')
  assert commands.run('predict', [
      f'--model={place}', f'--head={place}', f'--out={tmp_path / "out"}',
      f'--source=folder:{tmp_path / "images"}',
      f'--compile_cache={forked.CACHE}']) == 0
  got = np.asarray(Image.open(tmp_path / 'out' / predictions.MAPS / 'a.png'))
  assert (got == want.numpy()).mean() > 0.999


@pytest.mark.torch
@pytest.mark.parametrize('name, config, options', [
    ('Eomt', vit.ViTConfig(
        1024, 24, 16, 16, image_px=640, num_registers=4), {}),
    ('Eomt', vit.ViTConfig(
        1536, 40, 24, 16, image_px=640, num_registers=4, ffn='swiglu',
        ffn_hidden=4096), dict(
            hidden_size=1536, num_hidden_layers=40, num_attention_heads=24,
            use_swiglu_ffn=True, num_blocks=5)),
    ('EomtDinov3', vit.ViTConfig(
        1024, 24, 16, 16, position='rope', num_registers=4, mask_k_bias=True),
     {})])
def test_full_sizes_have_the_tensors_of_transformers(name, config, options):
  """By their shapes alone."""
  import torch
  package = peers.transformers()
  told = getattr(package, f'{name}Config')(num_labels=133, **options)
  with torch.device('meta'):
    model = getattr(package, f'{name}ForUniversalSegmentation')(told)
  want = {key: tuple(value.shape) for key, value in model.state_dict().items()
          if key not in ('attn_mask_probs', 'criterion.empty_weight')}
  decoder = eomt.Config(config, 133, 200, num_blocks=told.num_blocks)
  shapes = {'params': jax.eval_shape(
      lambda: eomt.init(jax.random.key(0), decoder))}
  got = translate.key_shapes(tables.backbone_table(config, tables.HF),
                             reading.shapes(config))
  of_head = translate.key_shapes(tables.table(decoder, tables.HF), shapes)
  assert all(got[key] == of_head[key] for key in got.keys() & of_head.keys())
  left_out = {key for key in got if key.endswith('mask_token') or (
      name == 'EomtDinov3' and key.endswith('k_proj.bias'))}
  assert {key: value for key, value in (got | of_head).items()
          if key not in left_out} == want


@functools.cache
def whole(config, words):
  """A whole model, and its tensors by the names of a file."""
  params = {'backbone': jax.tree.map(np.copy, cases.weights(config).params)}
  decoder = eomt.Config(config, 3, num_queries=4, num_blocks=2)
  rng = np.random.default_rng(0)
  drawn = jax.tree.map(
      lambda x: np.float32(rng.normal(size=x.shape)), jax.eval_shape(
          lambda: eomt.init(jax.random.key(0), decoder)))
  if config.position == 'learned':
    params['backbone']['pos_embed'][0] = 0  # files have none of CLS
  else:  # none of keys
    params['backbone']['blocks']['attn']['qkv']['bias'][:, 32:64] = 0
  params['backbone']['mask_token'][:] = 0
  head = drawn | eomt.taken(params['backbone'], decoder)
  state = translate.to_theirs(
      params['backbone'], tables.backbone_table(config, words))
  state |= translate.to_theirs({'params': head}, tables.table(decoder, words))
  return params['backbone'], head, tables.reduce(state, config, words)


def of_authors(state, *, std=0.2):
  """As their files have it."""
  state = state | {'attn_mask_probs': np.zeros(2, np.float32),
                   'encoder.pixel_mean': np.zeros((1, 3, 1, 1), np.float32),
                   'encoder.pixel_std': np.full(
                       (1, 3, 1, 1), std, np.float32)}
  return {f'network.{key}': value for key, value in state.items()} | {
      'criterion.empty_weight': np.ones(4, np.float32)}


@pytest.mark.parametrize('config', [V2, V3])
@pytest.mark.parametrize('words', [tables.HF, tables.REPOSITORY])
def test_files_come_back_as_they_were(config, words):
  backbone, head, state = whole(config, words)
  full = tables.complete(state, config, words)
  decoder = eomt.Config(config, 3, num_queries=4, num_blocks=2)
  table = tables.backbone_table(config, words)
  keys = {key for rule in table for key in rule.keys}
  read = translate.to_ours({key: full[key] for key in keys}, table,
                           reading.shapes(config))
  jax.tree.map(np.testing.assert_array_equal, read, backbone)
  again = translate.to_ours(
      full, tables.table(decoder, words), {'params': jax.eval_shape(
          lambda: eomt.init(jax.random.key(0), decoder))}, ignored=keys)
  jax.tree.map(np.testing.assert_array_equal, again['params'], head)


def test_a_file_of_its_authors_is_a_backbone_and_a_head(tmp_path, capsys):
  backbone, head, state = whole(V2, tables.REPOSITORY)
  path = str(tmp_path / 'eomt.safetensors')
  files.write_safetensors(path, of_authors(state))
  model = models.load(path, num_heads=2)
  assert 'the backbone is network.encoder' in capsys.readouterr().out
  assert model.config.image_px == SIDE and model.config.patch_px == PATCH
  jax.tree.map(np.testing.assert_array_equal, model.params, backbone)
  got = published_heads.read(path, model)
  jax.tree.map(np.testing.assert_array_equal, got.params, head)
  assert got.classes == ('class 0', 'class 1', 'class 2')
  assert got.facts['views'] == {
      'short_px': SIDE, 'crop_px': SIDE, 'stride_px': None}


def test_differences_are_added_to_what_they_are_from(tmp_path, capsys):
  backbone, head, state = whole(V3, tables.REPOSITORY)
  base = cases.weights(V3, 1)
  store.save(str(tmp_path / 'base'), base)
  prefix = tables.REPOSITORY.prefix
  before = tables.reduce(translate.to_theirs(
      base.params, tables.backbone_table(V3, tables.REPOSITORY)), V3,
                         tables.REPOSITORY)
  path = str(tmp_path / 'eomt.safetensors')
  files.write_safetensors(path, of_authors({
      key: value - before[key] if key.startswith(prefix) else value
      for key, value in state.items()}, std=0.0))
  with pytest.raises(errors.UserError, match='differences from the weights .*'
                     '--base=DINOV3'):
    models.load(path)
  conversions.bring_in(path, str(tmp_path / 'out'), base=str(
      tmp_path / 'base'))
  assert '/out/head`' in capsys.readouterr().out
  model = models.load(tmp_path / 'out')
  near = functools.partial(np.testing.assert_allclose, rtol=0, atol=1e-6)
  jax.tree.map(near, model.params, backbone)
  got = stored_heads.load(str(tmp_path / 'out/head'))
  jax.tree.map(near, got.params, head)
  assert got.check(model, got.origin.weights) is None
  # Whole files are taken as they are, others refused.
  files.write_safetensors(path, of_authors(state))
  conversions.bring_in(path, str(tmp_path / 'out'), base=str(
      tmp_path / 'base'))
  jax.tree.map(np.testing.assert_array_equal,
               models.load(tmp_path / 'out').params, backbone)
  other = dataclasses.replace(V3, num_registers=1)
  store.save(str(tmp_path / 'other'), cases.weights(other))
  files.write_safetensors(path, of_authors(state, std=0.0))
  with pytest.raises(errors.UserError, match='not from this backbone: 1 ten'):
    conversions.bring_in(path, str(tmp_path / 'out'), base=str(
        tmp_path / 'other'))


def folder_of(config, folder, state, **told):
  files.write_safetensors(str(folder / 'model.safetensors'), state)
  (folder / 'config.json').write_text(json.dumps({
      'model_type': 'eomt', 'hidden_size': 32, 'num_hidden_layers': 3,
      'num_attention_heads': 2, 'patch_size': PATCH, 'image_size': SIDE,
      'num_register_tokens': 2, 'layer_norm_eps': 1e-6, 'mlp_ratio': 4,
      'use_swiglu_ffn': False, 'hidden_act': 'gelu',
      'id2label': {'0': 'sky', '2': 'sea'}} | told))
  return str(folder)


def test_what_does_not_fit_is_a_sentence(tmp_path):
  _, _, state = whole(V2, tables.HF)
  state = state | {'attn_mask_probs': np.zeros(2, np.float32)}
  path = folder_of(V2, tmp_path, state)
  model = models.load(path)
  assert published_heads.read(path, model).classes == ('sky', 'class 1', 'sea')
  refused = functools.partial(published_heads.read, path, model)
  folder_of(V2, tmp_path, {key: value for key, value in state.items() if (
      key not in ('mask_head.fc2.bias', 'query.weight', 'layernorm.bias'))} | {
          'query.weight': state['query.weight'][:, :16],
          'token.weight': np.zeros(3, np.float32)})
  with pytest.raises(errors.UserError, match=(
      r'2 missing: mask_head.fc2.bias, layernorm.bias|'
      r'of another shape: query.weight \(4, 16\)')) as error:
    refused()
  assert all(text in str(error.value) for text in (
      '1 unexpected: token.weight', 'query.weight', 'fc2.bias'))
  folder_of(V2, tmp_path, {key: value for key, value in state.items()
                           if key != 'attn_mask_probs'})
  with pytest.raises(errors.UserError, match='lacks attn_mask_probs'):
    refused()
  folder_of(V2, tmp_path, state | {
      'attn_mask_probs': np.zeros(4, np.float32)})
  with pytest.raises(errors.UserError, match='in 4 blocks, and .* has 3'):
    refused()
  folder_of(V2, tmp_path, state, hidden_act='silu')
  with pytest.raises(errors.UserError, match="hidden_act='silu' is not known"):
    refused()
  folder_of(V2, tmp_path, state)
  names = tree.names(cases.weights(cases.CONVNEXT).params)
  assert names
  other = models.backbone.Backbone.of(cases.weights(cases.CONVNEXT))
  with pytest.raises(errors.UserError, match='in the blocks of a ViT, and'):
    published_heads.read(path, other)


def test_a_head_on_other_weights_is_warned_of(tmp_path):
  _, _, state = whole(V2, tables.HF)
  path = folder_of(V2, tmp_path, state | {
      'attn_mask_probs': np.zeros(2, np.float32)})
  head = published_heads.read(path, models.load(path))
  other = models.backbone.Backbone.of(cases.weights(V2, 3))
  assert 'weights are not those of' in head.check(other, 'another')
