# %% [markdown]
# # 5 · Take a model to PyTorch, and back
#
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/example/dinojax/blob/main/colabs/05_export_to_pytorch.ipynb)
#
# What was trained here is used elsewhere: in PyTorch by Meta's own modules, by
# transformers or by timm; anywhere by ONNX or StableHLO. Every export is run
# where its library is installed, and compared with our features: a difference
# is an error, not a surprise.
#
# It runs on a CPU, a GPU and a TPU without a change.

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
# `WEIGHTS` is anything that `dinojax.load` takes. If it is not there, the demo
# is trained first: three minutes on two cores.

# %% tags=["parameters"]
SMOKE = os.environ.get('SMOKE') == '1'  # seconds: only to try the notebook
WEIGHTS = 'runs/demo_smoke' if SMOKE else 'runs/demo'

# %%
import pathlib

import numpy as np

import dinojax
from dinojax.runs import conversions

# %%
if not os.path.exists(WEIGHTS):
  dinojax.train('demo:smoke' if SMOKE else 'demo', WEIGHTS)
model = dinojax.load(WEIGHTS)
model

# %% [markdown]
# ## Formats
#
# | format | what is written | who opens it |
# |---|---|---|
# | `meta` | a state dict, heads included | DINOv2's and DINOv3's own modules |
# | `hf` | a folder | `transformers.AutoModel.from_pretrained` |
# | `timm` | a state dict | `timm.create_model` |
# | `onnx` | a program | ONNX Runtime and others |
# | `stablehlo` | a program for CPU, CUDA and TPU | `jax.export` |
#
# `take_out` writes one, runs it on two images, and says by how much it differs.

# %%
for name in ('meta', 'hf', 'timm'):
  print(f'--- {name}')
  conversions.take_out(WEIGHTS, f'exports/{name}', format=name)

# %% [markdown]
# ## Open it in PyTorch
#
# With transformers, three lines. The same images must give the same numbers.

# %%
images = model.normalize(np.random.default_rng(0).integers(
    0, 256, (2, model.config.image_px, model.config.image_px, 3),
    dtype=np.uint8))
try:
  import torch
  from transformers import AutoModel

  theirs = AutoModel.from_pretrained('exports/hf').eval()
except ImportError as error:
  print(f'not opened: {error}\nInstall both: pip install torch transformers')
else:
  with torch.no_grad():
    tokens = theirs(torch.tensor(images.transpose(0, 3, 1, 2)))
  cls = tokens.last_hidden_state[:, 0].numpy()
  print('largest difference of CLS:',
        np.abs(cls - np.asarray(model(images).cls, np.float32)).max())

# %% [markdown]
# ## A program
#
# ONNX and StableHLO hold the network and its weights in one file, for images of
# one size in batches of any size.

# %%
conversions.take_out(WEIGHTS, 'exports/stablehlo', format='stablehlo')
if importlib.util.find_spec('jax2onnx'):
  conversions.take_out(WEIGHTS, 'exports/onnx', format='onnx')
for path in sorted(pathlib.Path('exports').rglob('*.*')):
  print(f'{path.stat().st_size / 1e6:8.2f} MB  {path}')

# %% [markdown]
# ## And back
#
# Files of PyTorch are opened as plain tensors only: nothing that they contain
# is run.

# %%
again = dinojax.load('exports/hf')
np.abs(np.asarray(again(images).cls) - np.asarray(model(images).cls)).max()

# %% [markdown]
# ## Where to go from here
#
# The same from a shell: `dinojax convert export --source=runs/mine --out=DIR
# --format=hf`, and `dinojax convert import` for the way back.
