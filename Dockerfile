# The image contains Python, `etl` and its run-time dependencies; no build or development tools.
#
#   docker build -t etl .
#   docker run --rm -v etl-data:/data etl run configs/sandbox.toml
#   docker run --rm -v etl-data:/data -e ELEAPI_TOKEN etl run configs/eleapi.toml
#   docker run --rm -v etl-data:/data etl report configs/sandbox.toml --output /data/report.html
#   docker run --rm -v etl-data:/data --network host etl explore configs/sandbox.toml
#   docker run --rm etl docs operations

ARG BASE=python:3.11.14-slim-bookworm

FROM ${BASE} AS build
WORKDIR /build
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1 PIP_ROOT_USER_ACTION=ignore

# The lock includes development tools. Download all its packages, checking each file against its hash, ...
COPY requirements.lock ./
RUN pip download --quiet --only-binary :all: --require-hashes --requirement requirements.lock --dest wheels

# ... and install from them only the dependencies of etl, without a network. The environment has no pip.
COPY . .
RUN python -m venv --without-pip /opt/etl \
    && pip --python /opt/etl/bin/python install --quiet --no-index --find-links wheels '.[metrics,report,postgres,s3,delta,scale]'

FROM ${BASE}
RUN pip uninstall --quiet --yes --root-user-action ignore wheel setuptools pip \
    && install --directory --owner 10001 --group 10001 --mode 0700 /data
COPY --from=build /opt/etl /opt/etl
COPY --chown=10001:10001 configs /configs
ENV PATH=/opt/etl/bin:$PATH PYTHONUNBUFFERED=1

# The paths in configs/ are relative: from / they point to the volume.
WORKDIR /
VOLUME /data
USER 10001:10001
ENTRYPOINT ["etl"]
CMD ["--help"]
