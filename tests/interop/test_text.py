"""Files of dino.txt: names by the specification, values there and back."""

import dataclasses

import jax
import numpy as np
import pytest

from dinojax.core import errors
from dinojax.core import tree
from dinojax.interop import translate
from dinojax.interop.heads import text as tables
from dinojax.models.text import tower
from dinojax.models.text import vision_head

SMALL = (
    tower.Config(width=64, depth=2, num_heads=1, context=5, vocabulary=11,
                 embed_dim=128, projects=True),
    vision_head.Config(width=64, depth=2, num_heads=1, embed_dim=128))
PUBLISHED = tower.Config(), vision_head.Config()


def block(prefix, norms, attention, ffn, d, sizes):
  """Tensors of a block, by the words of either tower."""
  out = {f'{prefix}.{attention}.qkv.weight': (3 * d, d),
         f'{prefix}.{attention}.proj.weight': (d, d),
         f'{prefix}.{attention}.proj.bias': (d,)}
  for norm in norms:
    out |= {f'{prefix}.{norm}.weight': (d,), f'{prefix}.{norm}.bias': (d,)}
  for name, shape in sizes.items():
    out |= {f'{prefix}.{ffn}.{name}.weight': shape,
            f'{prefix}.{ffn}.{name}.bias': shape[:1]}
  return out


def text_file(prefix, d, layers, context, vocabulary, e):
  out = {f'{prefix}backbone.token_embedding.weight': (vocabulary, d),
         f'{prefix}backbone.positional_embedding': (context, d),
         f'{prefix}backbone.ln_final.weight': (d,),
         f'{prefix}backbone.ln_final.bias': (d,),
         f'{prefix}head.linear_projection.weight': (e, d)}
  for i in range(layers):
    out |= block(f'{prefix}backbone.blocks.{i}',
                 ('attention_norm', 'ffn_norm'), 'attention', 'feed_forward',
                 d, {'fc1': (4 * d, d), 'fc2': (d, 4 * d)})
  return out


def vision_file(prefix, word, d, hidden):
  out = {f'{prefix}ln_final.weight': (d,), f'{prefix}ln_final.bias': (d,)}
  for i in (0, 1):
    at = f'{prefix}{word}.{i}'
    out |= block(at, ('norm1', 'norm2'), 'attn', 'mlp', d, {
        'w1': (hidden, d), 'w2': (hidden, d), 'w3': (d, hidden)})
    out |= {f'{at}.ls1.gamma': (d,), f'{at}.ls2.gamma': (d,)}
  return out


def of_shapes(shapes):
  rng = np.random.default_rng(0)
  return {name: rng.normal(size=shape).astype(np.float32)
          for name, shape in shapes.items()}


V3 = {'logit_scale': (1,), **text_file('text_model.', 64, 2, 5, 11, 128),
      **vision_file('visual_model.head.', 'blocks', 64, 192)}
V2 = (text_file('', 64, 2, 5, 11, 128), vision_file('', 'block_list', 64, 192))


def test_published_files_have_these_tensors():
  shapes = tables.shapes(*PUBLISHED)
  text = text_file('text_model.', 1280, 24, 77, 49408, 2048)
  vision = vision_file('visual_model.head.', 'blocks', 1024, 2752)
  got = translate.key_shapes(tables.table(*PUBLISHED), shapes)
  assert got == {'logit_scale': (1,)} | text | vision
  text = text_file('', 1280, 24, 77, 49408, 2048)
  vision = vision_file('', 'block_list', 1024, 2752)
  assert translate.key_shapes(tables.text_table(
      PUBLISHED[0], tables.META_V2), shapes) == text
  assert translate.key_shapes(tables.vision_table(
      PUBLISHED[1], tables.META_V2), shapes) == vision


def test_a_file_comes_back():
  state = of_shapes(V3)
  params = tables.from_v3(state, *SMALL)
  assert jax.tree.map(np.shape, params) == jax.tree.map(
      lambda x: x.shape, tables.shapes(*SMALL))
  back = tables.to_v3(params, *SMALL)
  assert back.keys() == state.keys()
  for name, value in back.items():
    np.testing.assert_array_equal(value, state[name], name)


def test_two_files_come_back_and_the_scale_is_at_its_start():
  states = [of_shapes(shapes) for shapes in V2]
  params = tables.from_v2(*states, *SMALL)
  np.testing.assert_allclose(params['log_scale'], [np.log(1 / 0.07)])
  for back, state in zip(tables.to_v2(params, *SMALL), states, strict=True):
    assert back.keys() == state.keys()
    for name, value in back.items():
      np.testing.assert_array_equal(value, state[name], name)
  # The same tensors as those of the other file.
  other = tables.from_v3({'logit_scale': np.float32([1])} | {
      f'text_model.{name}': value for name, value in states[0].items()} | {
          'visual_model.head.' + name.replace('block_list', 'blocks'): value
          for name, value in states[1].items()}, *SMALL)
  jax.tree.map(np.testing.assert_array_equal, params['vision'],
               other['vision'])
  jax.tree.map(np.testing.assert_array_equal, params['text'], other['text'])


def test_gates_and_values_are_not_exchanged():
  state = of_shapes(V3)
  leaves = dict(tree.items(tables.from_v3(state, *SMALL)))
  at = 'visual_model.head.blocks.1'
  np.testing.assert_array_equal(
      leaves['vision/blocks/mlp/w12/kernel'][1, :, :192],
      state[f'{at}.mlp.w1.weight'].T)
  np.testing.assert_array_equal(
      leaves['vision/blocks/mlp/w12/bias'][1, 192:],
      state[f'{at}.mlp.w2.bias'])


@pytest.mark.parametrize('read, files', [
    (tables.from_v3, [V3]), (tables.from_v2, V2)])
def test_nothing_is_passed_over(read, files):
  for place in range(len(files)):
    for name in list(files[place])[::7]:
      states = [of_shapes(shapes) for shapes in files]
      states[place]['spare.weight'] = states[place].pop(name)
      with pytest.raises(errors.UserError, match=(
          f'1 missing: {name}; 1 unexpected: spare.weight')):
        read(*states, *SMALL)


def test_sizes_are_those_of_the_tensors():
  assert tables.text_config(of_shapes(V3)) == SMALL[0]
  assert tables.vision_config(of_shapes(V3), 64, 1) == SMALL[1]
  text, vision = map(of_shapes, V2)
  assert tables.text_config(text, tables.META_V2) == SMALL[0]
  assert tables.vision_config(vision, 64, 1, tables.META_V2) == SMALL[1]
  vision |= {'linear_projection.weight': np.zeros((50, 64), np.float32)}
  assert tables.vision_config(vision, 64, 1, tables.META_V2) == (
      dataclasses.replace(SMALL[1], embed_dim=100, projects=True))
  published = {name: np.broadcast_to(np.float32(0), shape) for name, shape in
               text_file('text_model.', 1280, 24, 77, 49408, 2048).items()}
  assert tables.text_config(published) == dataclasses.replace(
      PUBLISHED[0], projects=True)
  with pytest.raises(errors.UserError, match='token_embedding.weight'):
    tables.text_config({})
