"""The references' state dicts as parameter trees, for golden cases."""

import re

import numpy as np


def nest(flat: dict[str, np.ndarray]) -> dict:
  tree = {}
  for path, value in flat.items():
    *parents, leaf = path.split('/')
    node = tree
    for name in parents:
      node = node.setdefault(name, {})
    node[leaf] = value
  return tree


def backbone(state: dict[str, np.ndarray]) -> dict:
  """A DINOv2 or DINOv3 ViT; chunked block keys too."""
  flat, stacks = {}, {}
  halves = {}
  for key, value in state.items():
    if key == 'rope_embed.periods' or key.endswith('bias_mask'):
      continue
    block = re.match(r'blocks\.(?:\d+\.)?(\d+)\.(.+)', key)
    if block:
      index, name = int(block.group(1)), block.group(2)
      half = re.match(r'mlp\.w([12])\.(\w+)', name)
      path, value = _leaf(name, value)
      if half:
        halves.setdefault((f'mlp/w12/{path.split("/")[-1]}', index), {})[
            half.group(1)] = value
      else:
        stacks.setdefault(path, {})[index] = value
    elif key == 'patch_embed.proj.weight':
      flat['patch_embed/kernel'] = value.transpose(2, 3, 1, 0)
    elif key == 'patch_embed.proj.bias':
      flat['patch_embed/bias'] = value
    elif key == 'pos_embed':
      flat[key] = value[0]
    elif key in ('cls_token', 'mask_token'):
      flat[key] = value.reshape(-1)
    elif key in ('register_tokens', 'storage_tokens'):
      flat['registers'] = value[0]
    else:
      path, value = _leaf(key, value)
      flat[path] = value
  for (path, index), parts in halves.items():
    stacks.setdefault(path, {})[index] = np.concatenate(
        [parts['1'], parts['2']], axis=-1)
  for path, values in stacks.items():
    flat['blocks/' + path] = np.stack([values[i] for i in range(len(values))])
  return nest(flat)


def head(state: dict[str, np.ndarray]) -> dict:
  """A DINO or iBOT head of either generation."""
  flat = {}
  for key, value in state.items():
    if key == 'last_layer.weight':
      flat['last_layer/kernel'] = value.T
    elif key == 'last_layer.weight_v':
      flat['last_layer/v'] = value.T
    elif key == 'last_layer.weight_g':
      flat['last_layer/g'] = value[:, 0]
    else:
      layer = re.match(r'mlp\.(?:(\d+)\.)?(weight|bias)', key)
      index = int(layer.group(1) or 0) // 2
      name = 'kernel' if layer.group(2) == 'weight' else 'bias'
      flat[f'mlp/fc{index}/{name}'] = value.T
  return nest(flat)


def _leaf(key: str, value: np.ndarray) -> tuple[str, np.ndarray]:
  *parents, name = key.split('.')
  if name == 'weight':
    is_norm = value.ndim == 1
    return '/'.join([*parents, 'scale' if is_norm else 'kernel']), value.T
  return '/'.join([*parents, name]), value
