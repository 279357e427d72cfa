"""DPT: meshes, and the network of transformers. Numbers: tests/kinds/dpt.py."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bench import peers
from dinojax.core import tree
from dinojax.interop import translate
from dinojax.interop.heads import dpt as tables
from dinojax.models.dense import bins
from dinojax.models.dense import dpt
from dinojax.parallel import mesh as mesh_lib
from tests import close

WIDTH = 12
CONFIG = dpt.Config(channels=8, projected=(4, 6, 8, 10), num_outputs=5,
                    readout='project', hidden=6, norm=True)


def made(config):
  params, stats = dpt.init(jax.random.key(0), config, [WIDTH] * 4)
  return {'params': params, 'stats': stats}


def maps(images, size=(2, 3)):
  rng = np.random.default_rng(0)
  return ([rng.normal(size=(images, *size, WIDTH)).astype(np.float32)
           for _ in range(4)],
          [rng.normal(size=(images, WIDTH)).astype(np.float32)
           for _ in range(4)])


def learned(mesh):
  """Outputs, statistics and gradients of a batch of eight, two of padding."""
  head, (grids, cls) = made(CONFIG), maps(8)
  weight = np.float32([1] * 6 + [0] * 2)

  def run(params, grids, cls, weight):
    out, stats = dpt.apply(
        params, head['stats'], CONFIG, grids, cls, weight)
    return (jnp.square(out).mean((1, 2, 3)) * weight).sum(), (out, stats)

  with mesh_lib.activate(mesh):
    split = jax.NamedSharding(mesh, mesh_lib.ROWS)
    grads, (out, stats) = jax.device_get(jax.jit(jax.grad(run, has_aux=True))(
        jax.device_put(head['params'], jax.NamedSharding(mesh, jax.P())),
        *jax.device_put((grids, cls, weight), split)))
    return out[:6], stats, grads


@pytest.mark.slow  # convolutions on a mesh are in kernels/
def test_a_mesh_changes_nothing():
  close.close(learned(mesh_lib.make(4, 2)),
              learned(mesh_lib.make(devices=jax.devices()[:1])),
              of_largest=1e-5)


def test_padding_counts_nothing():
  head, (grids, cls) = made(CONFIG), maps(8)
  apply = jax.jit(lambda grids, cls, weight: dpt.apply(
      head['params'], head['stats'], CONFIG, grids, cls, weight))
  whole = apply(grids, cls, np.float32([1] * 6 + [0] * 2))
  some = apply([x[:6] for x in grids], [x[:6] for x in cls],
               np.ones(6, np.float32))
  close.close((whole[0][:6], whole[1]), some, of_largest=1e-5)


def test_sizes_are_those_of_an_even_number_of_patches():
  for size, want in (((2, 4), (32, 64)), ((3, 3), (64, 64)),
                     ((1, 5), (32, 96))):
    out = jax.eval_shape(
        lambda grids, cls: dpt.apply(*made(CONFIG).values(), CONFIG, grids,
                                     cls)[0], *maps(1, size))
    assert out.shape == (1, *want, 5)


def test_an_unknown_read_out_is_named():
  with pytest.raises(ValueError, match="readout='cat' is not known: use one"):
    dpt.Config(readout='cat')


@pytest.mark.slow  # 256 channels; test_goldens.py has the numbers of DINOv2's
@pytest.mark.torch
def test_it_is_the_head_of_transformers():
  """A DPT whose ends are ReLU and one channel is DINOv2's, less min_depth."""
  import torch
  peers.torchvision()
  import transformers
  theirs = transformers.DPTForDepthEstimation(transformers.DPTConfig(
      backbone_config=transformers.Dinov2Config(
          hidden_size=WIDTH, num_hidden_layers=4, num_attention_heads=2,
          patch_size=4, image_size=16, out_indices=[1, 2, 3, 4],
          reshape_hidden_states=False, apply_layernorm=False),
      backbone=None, use_pretrained_backbone=False, use_timm_backbone=False,
      is_hybrid=False, neck_hidden_sizes=[4, 6, 8, 10],
      fusion_hidden_size=256, readout_type='project', add_projection=True,
      use_batch_norm_in_fusion_residual=False,
      use_bias_in_fusion_residual=False, head_in_index=-1)).eval()
  torch.manual_seed(0)
  for weight in theirs.parameters():
    torch.nn.init.normal_(weight, std=0.2)
  # Its last projection has 256 channels, whatever the others have.
  config = dpt.Config(channels=256, projected=(4, 6, 8, 10), num_outputs=1,
                      readout='project')
  state = {name: value.detach().numpy()
           for name, value in theirs.state_dict().items()
           if name.startswith(('neck.', 'head.'))}
  table = tables.table(config, tables.HF_DPT)
  head = translate.to_ours(
      state, table, jax.eval_shape(lambda: made(config)),
      ignored=tables.HF_UNUSED)
  grids, cls = maps(2, (3, 4))
  tokens = [torch.tensor(np.concatenate([c[:, None], g.reshape(
      2, 12, WIDTH)], axis=1)) for g, c in zip(grids, cls, strict=True)]
  with torch.no_grad():
    want = theirs.head(theirs.neck(tokens, 3, 4)).numpy()
  got, _ = jax.jit(lambda: dpt.apply(
      head['params'], head['stats'], config, grids, cls))()
  close.close(bins.regressed_depth(got, min_depth=0.0), want, of_largest=1e-5)
  back = translate.to_theirs(head, table)
  assert set(back) | set(tables.HF_UNUSED) == set(state)
  assert tree.names(head) == sorted(tree.names(head))
