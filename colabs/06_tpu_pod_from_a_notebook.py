# %% [markdown]
# # 6 · A TPU pod, planned from a notebook
#
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/example/dinojax/blob/main/colabs/06_tpu_pod_from_a_notebook.ipynb)
#
# A billion-parameter model is trained on hundreds of chips for weeks. Whether a
# step fits their memory, how fast it will be, and what the whole run costs, can
# be known before a chip is rented: the TPU compiler runs on any CPU. This
# notebook shows how parameters are split over devices, compiles a step for a
# pod, and adds up the bill.
#
# It needs a CPU only, and runs as well where there are accelerators.

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
# `TOPOLOGY` is a slice of TPUs, `v5e:4x4` or `v5p:4x4x4`; `cpu:8` needs no TPU
# compiler. Large models take five to ten minutes to compile.

# %% tags=["parameters"]
SMOKE = os.environ.get('SMOKE') == '1'  # seconds: only to try the notebook
CONFIG = 'vitl:smoke' if SMOKE else 'vitl'
TOPOLOGY = 'cpu:8' if SMOKE else 'v5e:4x4'
USD_PER_CHIP_HOUR = 1.2  # look up what yours costs
IMAGES = 1_281_167  # of the data set; ImageNet-1k

# %%
if not TOPOLOGY.startswith('cpu') and not importlib.util.find_spec('libtpu'):
  subprocess.check_call(
      [sys.executable, '-m', 'pip', 'install', '--quiet', 'libtpu'])
os.environ.setdefault('JAX_PLATFORMS', 'cpu')  # this is the notebook's; the
# compiler makes programs for TPUs all the same.

from dinojax.core import tree
from dinojax.parallel import mesh as mesh_lib
from dinojax.parallel import sharding
from dinojax.parallel import topologies
from dinojax.planning import plan
from dinojax.planning import text
from dinojax.runs import catalog
from dinojax.train import method as method_lib
from dinojax.train import settings as settings_lib

# %% [markdown]
# ## A mesh of devices
#
# Devices stand in a grid of two axes. Images are split over all of them.
# Weights, their average and the moments of the optimiser are split over the
# axis `fsdp`: each device keeps a part, and a block is gathered just before it
# is used. With `mesh.fsdp=1` every device has all weights.

# %%
config = catalog.load(CONFIG)
devices = topologies.devices(TOPOLOGY)
config.mesh.fsdp = min(8, len(devices))
if SMOKE:
  config.train.batch_size = 4 * len(devices)
settings = settings_lib.read(config)
mesh = mesh_lib.make(settings.mesh.data, settings.mesh.fsdp, devices=devices)
mesh

# %% [markdown]
# Which part of a weight a device keeps is told by its specification: a weight
# of shape [24, 1024, 4096] with `P(None, 'fsdp', None)` is split into 8 parts
# of [24, 128, 4096].

# %%
with mesh_lib.activate(mesh):
  method = method_lib.build(settings, mesh, epoch_steps=1)
shapes = method.student.shapes['backbone']
splits = dict(tree.items(
    sharding.shardings(method.student.shapes, mesh)['backbone']))
for name, leaf in list(tree.items(shapes))[:12]:
  print(f'{name:40} {str(list(leaf.shape)):20} {splits[name].spec}')

# %% [markdown]
# ## Compile the step for the pod
#
# It is the very step that training runs. The table says what a device needs,
# what the devices send each other, and how long a step should take, with
# everything it takes for granted. If it does not fit, the error says what would.

# %%
config.train.epoch_steps = IMAGES // config.train.batch_size
numbers = plan.compiled(config, TOPOLOGY)
print(text.table(numbers, explain=True))

# %% [markdown]
# ## The bill

# %%
if numbers['roofline'] is None:
  print('a CPU has no published peak: choose a TPU topology for a bill')
else:
  for bound, hours in numbers['roofline']['chip_hours'].items():
    print(f'{bound:15} {hours:10.0f} chip-hours, '
          f'{hours / numbers["devices"] / 24:6.1f} days on '
          f'{numbers["devices"]} chips, {hours * USD_PER_CHIP_HOUR:10.0f} USD')

# %% [markdown]
# ## Where to go from here
#
# - Try `mesh.fsdp`, `train.num_micro_batches` and `model.remat`, and another
#   slice; `dinojax compile --fit` finds the largest batch that fits.
# - Start it: `docs/launch.md` has one command each for TPU pods, Slurm and
#   Kubernetes. On every machine it is `dinojax train --config=vitl
#   --workdir=gs://BUCKET/vitl`.
