"""A tiny model, odd images, and tables of their features."""


import numpy as np

from dinojax.data import sources
from dinojax.features import embedding
from dinojax.features import stream
from dinojax.models import vit
from dinojax.parallel import processes

CONFIG = vit.ViTConfig(48, 2, 2, 14, image_px=56, num_registers=4)

CROP = embedding.Choice(resize_px=32, crop_px=28)

WHOLE = embedding.Choice(resize_px=30, crop_px=None)

SIZES = [(64, 48), (48, 64), (80, 40), (50, 50), (64, 48), (80, 41),
         (48, 72), (64, 48), (47, 63), (400, 20), (70, 70)]



class Killed(Exception):
  pass


def open_folder(folder):
  return sources.open_source(f'folder:{folder}')


def extract(model, folder, out, choice=CROP, **kwargs):
  kwargs = {'images_per_shard': 4} | kwargs
  reading = stream.Reading(**{'batch_size': 4} | {
      name: kwargs.pop(name) for name in list(kwargs)
      if name in stream.Reading.__dataclass_fields__})
  return embedding.embed(model, open_folder(folder), str(out), choice,
                         reading=reading, **kwargs)


def load(path):
  with np.load(path) as file:
    return dict(file)


def watched(monkeypatch):
  """Shapes of the batches that are computed from now on."""
  seen, put = [], processes.to_devices
  monkeypatch.setattr(processes, 'to_devices', lambda rows, mesh: (
      seen.append(rows.shape) or put(rows, mesh)))
  return seen
