# dinojax in a container:
#
#   docker build --tag dinojax .                            CPU
#   docker build --build-arg EXTRA=cuda13 --tag dinojax .   NVIDIA GPUs
#   docker build --build-arg EXTRA=tpu --tag dinojax .      Cloud TPUs, GKE
#
#   docker run --rm --gpus=all --shm-size=8g -v DATA:/data -v RUNS:/runs dinojax \
#     --config=vits --config.data.train=folder:/data --workdir=/runs/1
#
# CUDA comes with the Python packages; the machine needs only its driver.
# `docker stop --time=120` saves before it ends.

# The Python and, by requirements.txt, the jax that the tests run on.
FROM python:3.11.15-slim-trixie AS build

WORKDIR /source
COPY requirements.txt constraints.txt pyproject.toml MANIFEST.in README.md LICENSE ./
COPY dinojax ./dinojax
COPY configs ./configs
RUN python -m pip install build==1.6.1 \
 && python -m build --wheel --outdir /wheels

FROM python:3.11.15-slim-trixie

# Which optional dependencies of pyproject.toml; several with commas.
ARG EXTRA=""

ENV PYTHONUNBUFFERED=1 \
    PIP_NO_CACHE_DIR=1 \
    PIP_DISABLE_PIP_VERSION_CHECK=1

WORKDIR /dinojax
# Dependencies first: a change of the code does not install them again.
COPY requirements.txt constraints.txt ./
RUN python -m pip install --requirement requirements.txt \
    --constraint constraints.txt
COPY --from=build /wheels /wheels
RUN python -m pip install --constraint constraints.txt \
    "$(echo /wheels/dinojax-*.whl)${EXTRA:+[${EXTRA}]}"
# As paths, too: --config=configs/vitg.py.
COPY configs ./configs

# A number, so that Kubernetes can check that it is not root. Where the devices
# of TPUs belong to root, --build-arg RUN_AS=0.
ARG RUN_AS=1000
RUN useradd --uid 1000 --create-home trainer && install -d -o trainer /runs
USER ${RUN_AS}
ENTRYPOINT ["python", "-m", "dinojax.main"]
