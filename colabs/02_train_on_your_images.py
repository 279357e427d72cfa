# %% [markdown]
# # 2 · Train on your own images
#
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/example/dinojax/blob/main/colabs/02_train_on_your_images.ipynb)
#
# From a folder of images to a model of its own: no labels are needed. This
# notebook looks at the images as the network will see them, trains, reads the
# curves, and looks at what was learned. Everything it does, `dinojax train`
# does from a shell, on a laptop as on a TPU pod.
#
# Five words: a **teacher**, the slow average (EMA) of the **student**, answers
# for each image with a distribution over K **prototypes**. The **DINO** loss
# makes the student answer alike for the whole image (its **CLS** token), the
# **iBOT** loss for patches that it does not see, and **KoLeo** spreads the
# features out.
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
# ## Your images
#
# `IMAGES` is a folder. Sub-folders are classes; they are used only to measure,
# never to learn. In Colab, upload a folder, or mount your drive:
#
# ```
# from google.colab import drive
# drive.mount('/content/drive')
# ```
#
# With a folder of yours, training takes about twenty minutes on two cores; on a
# GPU or TPU, a day at most. Leave it empty to learn from tiles of sixteen
# photographs that are installed here: three minutes on two cores. `WORKDIR` is
# where everything is written: another folder of images needs another one. With
# `SMOKE` a few steps are trained, of drawn patterns if `IMAGES` is empty: the
# numbers then mean nothing.

# %% tags=["parameters"]
SMOKE = os.environ.get('SMOKE') == '1'  # True: a few steps, to try the notebook
IMAGES = ''  # such as '/content/drive/MyDrive/plankton'
NAME = os.path.basename(IMAGES.rstrip('/')) or 'notebook'
WORKDIR = f'runs/{NAME}_smoke' if SMOKE else f'runs/{NAME}'

# %%
from IPython.display import display

import dinojax
from dinojax.configs import common
from dinojax.data import sources
from dinojax.runs import autoconfig
from dinojax.runs import batch_picture
from dinojax.runs import catalog
from dinojax.runs import neighbour_picture
from dinojax.runs import patch_picture
from dinojax.runs.report import curves

# %% [markdown]
# ## A config
#
# A config says everything about a training: the model, the crops, the losses,
# the schedules. For a folder of yours one is chosen, and each choice is printed
# with its reason, as the lines of a Python file, `WORKDIR/config.py`, in which
# `c` is the config. Running this cell again reads that file.

# %%
if IMAGES:
  config = autoconfig.config_for(IMAGES, WORKDIR)
  if SMOKE:
    common.set_duration(config.train, 'total', steps=4)
    common.set_duration(config.schedules.lr, 'warmup', steps=2)
else:
  config = catalog.load('demo:smoke' if SMOKE else 'demo')

print(f'{config.model.depth} blocks of width {config.model.embed_dim}, patches '
      f'of {config.model.patch_px} pixels; crops of {config.crops.global_px} '
      f'and {config.crops.local_px} pixels; batch {config.train.batch_size}')

# %% [markdown]
# Any value can be changed before training begins; later, another value needs
# another `WORKDIR`. Lengths are in steps, epochs or images.

# %%
# common.set_duration(config.train, 'total', epochs=300)
# config.train.batch_size = 32

# %% [markdown]
#
# ## Look before you train
#
# The first rows of the first batch, after cropping, colour changes and blur.
# The teacher sees the two global crops whole; the student sees half of them
# with the grey patches hidden, and the small local crops, and must say what the
# teacher says. If you cannot recognise your images here, the network cannot either.

# %%
batch_picture.draw(config, count=4)

# %% [markdown]
# ## Train
#
# The progress line shows the loss; *loss/ln K* is 1 for a student that answers
# every image alike, and must fall below it; *data wait* is the share of a step
# that devices were idle, waiting for images; and what is left of the time.
# Interrupt the cell when you like: run it again, and it goes on from the last
# checkpoint, to the same weights.

# %%
result = dinojax.train(config, WORKDIR)
result

# %% [markdown]
# ## Curves

# %%
for chart in curves.of_run(WORKDIR)[:4]:
  display(chart)

# %% [markdown]
# - **Losses** start at ln K, the uniform answer, that of iBOT at half of it. A DINO loss that stays there
#   learns nothing yet; the log says so in words if it lasts.
# - **k-NN accuracy** asks: are the nearest images of a held-out image of its
#   class? It needs labels, and is the number to trust. Compare it with what raw
#   pixels and the untrained network reach: the difference is what was learned.
#   Without labels this chart is missing.
# - **Teacher**: *spread* near 0 means that all images get the same features.
# - **Left to learn from the teacher**: how far the student's answers are from
#   the teacher's. It may be small and the run still well: the teacher moves on.
#
# ## What its patches have learned
#
# Principal components of the patch features as colours, and how similar every
# patch is to the marked one.

# %%
patch_picture.draw([WORKDIR], patch_picture.Look(
    images=IMAGES or (config.data.validation if SMOKE else None),
    count=2 if SMOKE else 4, grid=8 if SMOKE else 32))

# %% [markdown]
# ## Which images are alike?
#
# The nearest neighbours of some images by their CLS vector: each row starts
# with an image, and its neighbours follow.

# %%
neighbour_picture.draw(
    dinojax.load(WORKDIR), sources.open_source(IMAGES or config.data.validation),
    resize_px=config.crops.global_px, crop_px=config.crops.global_px)

# %% [markdown]
# ## Where to go from here
#
# - Train for longer, in another `WORKDIR`: what was chosen for a CPU ends after
#   twenty minutes, and small data sets need hundreds of epochs.
# - Begin with weights that know much already: `03_continue_from_weights`.
# - Make a smaller model of it: `04_distill`.
# - Use it in PyTorch: `05_export_to_pytorch`.
# - The same from a shell: `dinojax train --data=FOLDER --workdir=runs/mine`.
