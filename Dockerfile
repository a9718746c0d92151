# One image for every role: `docker run IMAGE --role web`, `--role worker`; without a role it is both,
# with a Redis of its own unless ROUTEMASTER_REDIS_URL names one. docs/operations.rst tells more.

FROM python:3.11-slim AS build
# The libraries of exception services too: --build-arg REQUIREMENTS=requirements-reporters.txt; and those for traces:
# requirements-full.txt
ARG REQUIREMENTS=requirements.txt
WORKDIR /build
RUN python -m venv --without-pip /opt/routemaster
# The libraries are those of the locked files, by their hashes, and nothing else is downloaded: a new release, or
# another file under an old version, does not get into the image until .ci/lock is run and its result reviewed.
COPY deploy/requirements*.txt deploy/
RUN pip --python /opt/routemaster/bin/python install --no-cache-dir --require-hashes -r "deploy/$REQUIREMENTS"
COPY . .
RUN pip --python /opt/routemaster/bin/python install --no-cache-dir --no-deps --no-build-isolation --no-index .
# Twisted keeps a list of its plugins beside them; at run time nothing there can be written.
RUN cd / && /opt/routemaster/bin/twistd --help >/dev/null

FROM python:3.11-slim
RUN groupadd --system --gid 10001 routemaster \
 && useradd --system --uid 10001 --gid routemaster --no-create-home --home-dir /var/lib/routemaster routemaster \
 && install --directory --owner=routemaster --group=routemaster --mode=0700 /var/lib/routemaster
COPY --from=build /opt/routemaster /opt/routemaster
ENV PATH=/opt/routemaster/bin:$PATH \
    HOME=/var/lib/routemaster \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    ROUTEMASTER_HTTPS=tcp:17890 \
    ROUTEMASTER_STATE_DIR=/var/lib/routemaster
WORKDIR /var/lib/routemaster
VOLUME /var/lib/routemaster
USER 10001:10001
EXPOSE 17890
# It asks whether the process lives, over loopback, so the name in the certificate does not matter.
# A worker has no port: switch the check off for it (--no-healthcheck).
HEALTHCHECK --interval=10s --timeout=5s --start-period=60s --retries=3 \
    CMD ["python", "-c", "import ssl, urllib.request as u; c = ssl.create_default_context(); c.check_hostname = False; c.verify_mode = ssl.CERT_NONE; u.urlopen('https://127.0.0.1:17890/health', timeout=4, context=c)"]
ENTRYPOINT ["twistd", "-n", "routemaster"]
CMD ["--role", "all"]
