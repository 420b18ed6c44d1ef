# An image with the command `safegene`, for runs on CPUs. Mount the workspace at /work and keep /home/safegene, which
# holds keys, cache and the memory of ledgers, in a volume of its own:
#   docker build -t safegene .
#   docker run --rm -v "$PWD:/work" -v safegene-home:/home/safegene safegene status
# For GPUs install the CUDA build of the same torch version instead.
FROM python:3.11-slim-bookworm AS build
WORKDIR /source
COPY requirements.lock pyproject.toml README.md LICENSE ./
RUN python -m venv /opt/safegene \
    && /opt/safegene/bin/pip install --no-cache-dir --index-url https://download.pytorch.org/whl/cpu torch==2.13.0 \
    && /opt/safegene/bin/pip install --no-cache-dir -r requirements.lock
COPY . .
RUN /opt/safegene/bin/pip install --no-cache-dir --no-deps --no-build-isolation .

FROM python:3.11-slim-bookworm
# Debian removes the versions of a release that it replaces, so that a pinned one cannot be installed later.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends git \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --create-home --uid 1000 safegene
COPY --from=build /opt/safegene /opt/safegene
ENV PATH=/opt/safegene/bin:$PATH DO_NOT_TRACK=1 DVC_NO_ANALYTICS=1
USER 1000
WORKDIR /work
ENTRYPOINT ["safegene"]
CMD ["--help"]
