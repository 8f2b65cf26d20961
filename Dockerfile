# SPDX-License-Identifier: Apache-2.0
# An image with the compiled package, without a compiler.
#
#   docker build -t gangealing_fast .                                                             # kernels for the CPU
#   docker build -t gangealing_fast --build-arg BUILDER=nvidia/cuda:13.0.2-devel-ubuntu24.04 .     # and for CUDA
#   docker run --rm -v "$PWD:/data" gangealing_fast gangealing_fast.align --checkpoint aligner --data photos --out aligned
#
# TORCH is what pip is asked for, such as "torch==2.14.1 torchvision==0.29.1", or with an option that names an index of CPU builds.
# With CUDA add `--gpus all` to docker run.

ARG BUILDER=python:3.12-bookworm
ARG RUNTIME=python:3.12-slim-bookworm

FROM ${BUILDER} AS builder
ARG TORCH="torch torchvision"
RUN apt-get update && apt-get install -y --no-install-recommends g++ python3 python3-dev python3-venv && rm -rf /var/lib/apt/lists/*
WORKDIR /src
COPY pyproject.toml setup.py MANIFEST.in README.md LICENSE ./
COPY _build _build
COPY csrc csrc
COPY kernels kernels
COPY gangealing_fast gangealing_fast
# The wheel belongs to no Python and to no torch from 2.10 on, so that builder and runtime may differ in both.
RUN python3 -m venv /build && /build/bin/pip install --no-cache-dir ${TORCH} \
    && GGF_REQUIRE_EXTENSION=1 /build/bin/pip wheel --no-cache-dir --no-deps --wheel-dir /wheels .

FROM ${RUNTIME}
ARG TORCH="torch torchvision"
RUN pip install --no-cache-dir ${TORCH}
COPY --from=builder /wheels /wheels
RUN pip install --no-cache-dir /wheels/*.whl && rm -r /wheels && python -m gangealing_fast.env
WORKDIR /data
ENTRYPOINT ["python", "-m"]
CMD ["gangealing_fast"]
