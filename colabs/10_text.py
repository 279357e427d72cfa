# %% [markdown]
# # 10 · Classes as texts
#
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/example/dinojax/blob/main/colabs/10_text.ipynb)
#
# A text tower, and a small head on a frozen backbone, learn which caption goes
# with which image. Then a class is a sentence: images and pixels are named
# without a label, and found by what one writes.
#
# Without captions of your own, tiles of the demo's photographs are said in a few
# words each. It runs on a CPU, a GPU and a TPU without a change.

# %% tags=["install"]
# Installs dinojax, with what the accelerator of this machine needs, unless it
# is here. If Colab then asks to restart the session: do, and go on below.
import importlib.util
import os
import shutil
import subprocess
import sys

REPOSITORY = 'https://github.com/example/dinojax'
if importlib.util.find_spec('dinojax') is None:
  extras = 'notebooks'
  driver = shutil.which('nvidia-smi') and subprocess.run(
      ['nvidia-smi', '--query-gpu=driver_version', '--format=csv,noheader'],
      capture_output=True, text=True).stdout.split('.')[0]
  if driver and driver.isdigit():  # else there is no GPU in this runtime
    extras += ',cuda13' if int(driver) >= 580 else ',cuda12'
  elif os.path.exists('/dev/vfio/0') or os.path.exists('/dev/accel0'):
    extras += ',tpu'
  subprocess.check_call([sys.executable, '-m', 'pip', 'install', '--quiet',
                         f'dinojax[{extras}] @ git+{REPOSITORY}'])

# %% [markdown]
# `CAPTIONS` and `HELD_OUT` are images with captions, such as
# `csv:captions.csv` with the columns image and caption; leave them empty for
# the demo's.

# %% tags=["parameters"]
SMOKE = os.environ.get('SMOKE') == '1'  # seconds: only to try the notebook
MODEL = 'runs/demo_smoke' if SMOKE else 'runs/demo'
CAPTIONS, HELD_OUT = '', ''
OUT = 'runs/text_smoke' if SMOKE else 'runs/text'

# %%
import csv
import pathlib

from IPython.display import Markdown
from IPython.display import display
import numpy as np
from PIL import Image

import dinojax
from dinojax.data import sources
from dinojax.runs import catalog
from dinojax.runs import evaluation

# %%
if not os.path.exists(MODEL):
  dinojax.train('demo:smoke' if SMOKE else 'demo', MODEL)
model = dinojax.load(MODEL)
side = 4 * model.config.patch_px

# %% [markdown]
# ## Captions

# %%
WORDS = {'coffee': 'a cup of coffee', 'chelsea': 'a ginger cat',
         'gravel': 'grey gravel', 'flower': 'a pink flower',
         'grass': 'green grass', 'moon': 'craters of the moon',
         'china': 'a temple in china', 'coins': 'old coins'}
SAID = ('a picture of {}', '{}, seen from nearby', 'here is {}')


def say(folder, split, most):
  """Writes tiles with captions; also as classes, a folder each."""
  source, place = sources.open_source(f'photos:{split}'), pathlib.Path(folder)
  rows, count = [], dict.fromkeys(WORDS, 0)
  for i in range(len(source)):
    record = source[i]
    kind = next((k for k in WORDS if k in source.classes[record.label]), None)
    if kind is None or count[kind] == most:
      continue
    count[kind] += 1
    file = place / WORDS[kind].replace(' ', '_') / f'{i}.png'
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(record.image)
    rows += [(file.relative_to(place), said.format(WORDS[kind]))
             for said in SAID]
  with open(place / 'captions.csv', 'w', newline='') as table:
    csv.writer(table).writerows([('image', 'caption'), *rows])
  return f'csv:{folder}/captions.csv'


if not CAPTIONS:
  CAPTIONS = say(f'{OUT}/train', 'train', 4 if SMOKE else 100)
  HELD_OUT = say(f'{OUT}/test', 'validation', 2 if SMOKE else 20)

# %% [markdown]
# ## Training
#
# The backbone stays as it is. The vocabulary is learned from the captions. The
# same cell goes on where it was stopped.

# %%
config = catalog.load('dinotxt:smoke' if SMOKE else 'dinotxt:small')
config.alignment.backbone = MODEL
config.data.train, config.data.validation = CAPTIONS, HELD_OUT
config.crops.px = side
if not SMOKE:
  config.text.width, config.text.depth, config.text.context = 128, 3, 24
  config.text.num_ids = 600
  config.alignment.total_steps = 400.0
  config.alignment.every_steps = 200.0
  config.checkpoint.every_steps = 200.0
print(dinojax.train(config, f'{OUT}/run'))

# %% [markdown]
# ## Named without labels
#
# Zero-shot: the class whose sentences are nearest. The folders of the held-out
# tiles are the classes, and their names the words.

# %%
head = f'{OUT}/run/head'
sizes = {'resize_px': side, 'crop_px': side}
display(Markdown(evaluation.evaluate(evaluation.Request(
    models=[MODEL], protocols=['zero_shot', 'captions'], config={
        'zero_shot': sizes | {'head': head},
        'captions': sizes | {'head': head, 'test': (HELD_OUT,)}},
    test=[f'folder:{OUT}/test'], out=f'{OUT}/evaluation'))))

# %% [markdown]
# ## Found by what one writes
#
# Any sentence is a point among the images.

# %%
both = dinojax.load_aligned(model, head)
files = sorted(pathlib.Path(f'{OUT}/test').rglob('*.png'))
images = both.images(files, resize_px=side, crop_px=side)
asked = ['a ginger cat', 'craters of the moon', 'green grass']
unit = lambda x: x / np.linalg.norm(x, axis=1, keepdims=True)
order = np.argsort(-unit(both.texts(asked)) @ unit(images).T, axis=1)
tile = lambda i: np.asarray(Image.open(files[i]).convert('RGB').resize(
    (96, 96)))
for row, text in enumerate(asked):
  print(text)
  display(Image.fromarray(np.concatenate(
      [tile(i) for i in order[row, :6]], axis=1)))

# %% [markdown]
# ## Where to go from here
#
# - Pixels named by texts: the protocol `open_vocabulary`.
# - The published heads of DINOv2 and DINOv3 are read as they are, by
#   `load_aligned(model, file, tokenizer='clip:FILE')`.
# - Millions of captions on a pod: `dinojax train --config=dinotxt`, with
#   `img2dataset:DIR` or `tar:GLOB`.
