# %% [markdown]
# # 1 · Features of a vision transformer, and what they look like
#
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/example/dinojax/blob/main/colabs/01_features_and_pca.ipynb)
#
# DINOv2 and DINOv3 learn from images alone, without labels. What they have
# learned is a vector for the whole image and one for every small patch of it.
# This notebook loads such a model, computes these vectors, and makes them
# visible: as colours, as similarity to a point you choose, as attention.
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
# `WEIGHTS` is anything that `dinojax.load` takes: a model of the Hugging Face
# Hub, a file of Meta's, the folder of a run of your own. Leave it empty to
# train a small network here first, which takes three minutes on two cores.

# %% tags=["parameters"]
SMOKE = os.environ.get('SMOKE') == '1'  # seconds: only to try the notebook
WEIGHTS = '' if SMOKE else 'hf:facebook/dinov2-small'
IMAGES = []  # your own files; empty: four photographs that are installed here

# %%
import numpy as np
from PIL import Image

import dinojax
from dinojax.data import photos
from dinojax.runs import pictures

# %% [markdown]
# ## A model in one line

# %%
if not WEIGHTS:
  WEIGHTS = 'runs/demo_smoke' if SMOKE else 'runs/demo'
  dinojax.train('demo:smoke' if SMOKE else 'demo', WEIGHTS)
model = dinojax.load(WEIGHTS)
model

# %% [markdown]
# ## Images in, features out
#
# `preprocess` takes paths, bytes, Pillow images or arrays, and returns what
# the model was trained to see. A vision transformer cuts the image into square
# patches; the sides must be whole patches, and may otherwise be what you like.
# Larger images give finer maps.

# %%
patches_a_side = 8 if SMOKE else 32
side = patches_a_side * model.config.token_px
images = [Image.open(path) for path in IMAGES] or [
    photos.held_out(name)
    for name in ('chelsea', 'coffee', 'rocket', 'astronaut')]
batch = model.preprocess(images, resize_px=side, crop_px=side)
features = model(batch)
features

# %% [markdown]
# - `cls` is one vector for each image: for search, classification, clusters.
# - `patches` has one vector for each patch, row by row from the top left: for
#   segmentation, depth, correspondence.
# - `registers` are scratch space of the network; some models have none.
#
# ## Patches as colours
#
# A patch has hundreds of numbers, and an eye sees three. Principal component
# analysis finds the three directions in which the patches of all these images
# differ most; they become red, green and blue. Parts of the same kind get the
# same colour, also in different images.

# %%
maps = np.asarray(
    model.intermediate(batch, reshape=True)[0].patches, np.float32)
shown = model.pixels(images, resize_px=side, crop_px=side)
colours = pictures.pca_rgb(maps)
pictures.panel(
    [[pictures.enlarge(image, 224, smooth=True) for image in shown],
     [pictures.enlarge(colour, 224) for colour in colours]])

# %% [markdown]
# ## How similar is every patch to this one?
#
# Choose a point of the first image. Bright patches have features in the same
# direction as the marked one. The other images are searched with the same
# vector: nobody told the model what an eye or a cup is.

# %%
row, column = patches_a_side * 45 // 100, patches_a_side * 45 // 100
query = maps[0, row, column]
query = query / np.linalg.norm(query)
unit = maps / np.linalg.norm(maps, axis=-1, keepdims=True)
scale = 224 / patches_a_side
spot = ((column + 0.5) * scale, (row + 0.5) * scale)
first = pictures.mark(pictures.enlarge(shown[0], 224, smooth=True), spot)
pictures.panel(
    [[first] + [pictures.enlarge(image, 224, smooth=True)
                for image in shown[1:]],
     [pictures.enlarge(pictures.colorize(similarity), 224, smooth=True)
      for similarity in unit @ query]])

# %% [markdown]
# ## Where do the layers differ?
#
# Early layers know colour, edges and position; late ones know what belongs
# together. `intermediate` gives any of them.

# %%
depth = model.config.depth
layers = sorted({0, depth // 3, 2 * depth // 3, depth - 1})
inner = model.intermediate(batch[:1], layers, reshape=True)
pictures.panel(
    [[pictures.enlarge(pictures.pca_rgb(np.asarray(layer.patches, np.float32))
                       [0], 224) for layer in inner]],
    [f'after block {number + 1} of {depth}' for number in layers])

# %% [markdown]
# ## What the image token looks at
#
# The CLS token gathers what it needs from the patches. Each head of the last
# block looks for something else.

# %%
attention = np.asarray(model.attention_maps(batch[:1]), np.float32)[0]
num_others = attention.shape[-1] - patches_a_side**2  # CLS and registers
heads = attention[:6, 0, num_others:].reshape(
    -1, patches_a_side, patches_a_side)
pictures.panel(
    [[pictures.enlarge(pictures.colorize(head), 150, smooth=True)
      for head in heads]],
    [f'head {number + 1}' for number in range(len(heads))])

# %% [markdown]
# ## Whole images: which are alike?
#
# Two crops of each image, compared by their CLS vectors. Bright squares along
# the diagonal are crops of the same image.

# %%
crops = [image[y:y + 3 * side // 4, x:x + 3 * side // 4] for image in shown
         for y, x in ((0, 0), (side // 4, side // 4))]
cls = np.asarray(model(model.preprocess(
    crops, resize_px=side, crop_px=side)).cls, np.float32)
cls = cls / np.linalg.norm(cls, axis=-1, keepdims=True)
pictures.enlarge(pictures.colorize(cls @ cls.T), 320)

# %% [markdown]
# ## Where to go from here
#
# - Train such a model on images of your own: `02_train_on_your_images`.
# - Go on from weights like these: `03_continue_from_weights`.
# - Take it to PyTorch: `05_export_to_pytorch`.
# - Features of a whole folder, as a table, from a shell:
#   `dinojax embed --model=WEIGHTS --source=folder:DIR --out=features.npz`.
