# Both images of ModelChain. `make images` builds them; docs/container-images.md says what they promise, and how to
# build them on other bases or from another package index.
#     docker build --target operator --tag modelchain-operator .
#     docker build --target trainer --tag modelchain-trainer .
# Nothing here needs BuildKit: buildah and Docker's classic builder build it as well.

# The same Debian with the same Python at the same path: an environment made on the one runs on the other.
ARG BASE_IMAGE=docker.io/library/debian:13-slim
ARG OPERATOR_BASE_IMAGE=gcr.io/distroless/python3-debian13:nonroot


FROM ${BASE_IMAGE} AS base
# Debian's current versions: it does not serve those that a pin would name for long.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends ca-certificates python3 \
    && rm -rf /var/lib/apt/lists/*


FROM base AS build
# Package indexes other than the default one. Neither image keeps them.
ARG PIP_INDEX_URL
ARG UV_DEFAULT_INDEX
# The base's certificate authorities, as pip takes them; by default uv brings its own.
ENV UV_NO_CACHE=1 UV_COMPILE_BYTECODE=1 UV_SYSTEM_CERTS=1 PIP_DISABLE_PIP_VERSION_CHECK=1
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends python3-venv \
    && rm -rf /var/lib/apt/lists/*
WORKDIR /src
COPY constraints.txt ./
# /opt/venv is what the images get: dependencies, and by a .pth file our code, which has a layer of its own. A new
# version of ModelChain is a small pull then.
RUN python3 -m venv /opt/build \
    && /opt/build/bin/pip install --no-cache-dir --constraint constraints.txt uv \
    && python3 -m venv --without-pip /opt/venv \
    && echo /opt/modelchain > "$(echo /opt/venv/lib/python3*/site-packages)/modelchain.pth"
COPY pyproject.toml ./


FROM build AS code
COPY README.md LICENSE ./
COPY modelchain modelchain
COPY operator operator
COPY trainer trainer
RUN /opt/build/bin/uv pip install --python /opt/venv --build-constraint constraints.txt --no-deps \
        --target /opt/modelchain .


FROM build AS operator-dependencies
# Without what only the command line needs to draw and to colour. Of the AWS clients S3 stays, and those that S3 gets
# credentials from.
RUN printf '%s\n' jinja2 matplotlib rich > excludes.txt \
    && /opt/build/bin/uv pip install --python /opt/venv --constraint constraints.txt --excludes excludes.txt \
        --requirement pyproject.toml --extra operator \
    && find /opt/venv/lib/python3*/site-packages/botocore/data -mindepth 1 -maxdepth 1 -type d \
        ! -name s3 ! -name sts ! -name sso ! -name sso-oidc ! -name signin -exec rm -r {} +


FROM ${OPERATOR_BASE_IMAGE} AS operator
COPY --from=operator-dependencies /opt/venv /opt/venv
COPY --from=code /opt/modelchain /opt/modelchain
ENV PATH=/opt/venv/bin HOME=/tmp PYTHONUNBUFFERED=1
# By number, so that Kubernetes can tell that it is not root. Any other user will do.
USER 65532:65532
# Fails here if the base has another Python than the one that the environment was made for.
RUN ["python", "-c", "import modelchain_operator.app"]
EXPOSE 8080
ENTRYPOINT ["python", "-m", "modelchain_operator"]
ARG VERSION
ARG REVISION
ARG SOURCE=https://github.com/modelchain/modelchain
ARG LICENSES=Apache-2.0
LABEL org.opencontainers.image.title="modelchain-operator" \
      org.opencontainers.image.description="The Kubernetes operator of ModelChain" \
      org.opencontainers.image.documentation="https://modelchain.dev" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}" \
      org.opencontainers.image.source="${SOURCE}" \
      org.opencontainers.image.licenses="${LICENSES}"


FROM build AS trainer-dependencies
RUN /opt/build/bin/uv pip install --python /opt/venv --constraint constraints.txt \
        --requirement pyproject.toml --extra trainer


FROM base AS trainer
# For chains with `training.compile`: torch compiles C++ for a CPU, and Triton its launcher for a GPU.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends g++ libpython3-dev \
    && rm -rf /var/lib/apt/lists/*
COPY --from=trainer-dependencies /opt/venv /opt/venv
COPY --from=code /opt/modelchain /opt/modelchain
ENV PATH=/opt/modelchain/bin:/opt/venv/bin:/usr/local/bin:/usr/bin:/bin HOME=/tmp PYTHONUNBUFFERED=1 \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility
USER 65532:65532
RUN ["python", "-c", "import modelchain_trainer.training"]
CMD ["python", "-m", "modelchain_trainer"]
ARG VERSION
ARG REVISION
ARG SOURCE=https://github.com/modelchain/modelchain
ARG LICENSES=Apache-2.0
LABEL org.opencontainers.image.title="modelchain-trainer" \
      org.opencontainers.image.description="Trains one stage of a ModelChain: torch with CUDA" \
      org.opencontainers.image.documentation="https://modelchain.dev" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}" \
      org.opencontainers.image.source="${SOURCE}" \
      org.opencontainers.image.licenses="${LICENSES}"
