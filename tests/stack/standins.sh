#!/usr/bin/env bash
# Base images of the stack where no registry answers: local images of the same names, from Debian's packages.
# What a registry or the machine has is taken as it is.
set -euo pipefail
cd "$(dirname "$0")"
STACK_DIR=${STACK_DIR:-/var/tmp/detbench-stack}
PYTHON=python:3.11-slim-bookworm
PROMETHEUS=$(grep -oE 'prom/prometheus:[^ ]+' ../../compose.yaml)
PUSHGATEWAY=$(grep -oE 'prom/pushgateway:[^ ]+' ../../compose.yaml)
GRAFANA=$(grep -oE 'grafana/grafana:[^ ]+' ../../compose.yaml)

say() { printf '%s\n' "$*" >&2; }

here() { docker image inspect "$1" >/dev/null 2>&1 || timeout 60 docker pull -q "$1" >/dev/null 2>&1; }

python_image() {
  local root=$STACK_DIR/python ca=/etc/ssl/certs/ca-certificates.crt
  say "making a stand-in for $PYTHON"
  rm -rf "$root"
  debootstrap --variant=minbase --include=python3,python3-venv,python3-pip,ca-certificates bookworm "$root" >/dev/null
  for name in python python3; do ln -sf /usr/bin/python3 "$root/usr/local/bin/$name"; done
  ln -sf /usr/bin/pip3 "$root/usr/local/bin/pip"
  rm -f "$root"/usr/lib/python3*/EXTERNALLY-MANAGED "$root"/var/cache/apt/archives/*.deb
  # A network may have a CA of its own; what this machine trusts, the build must trust.
  local -a trust=()
  if [ -f "$ca" ]; then
    install -D -m 644 "$ca" "$root$ca"
    trust=(-c "ENV PIP_CERT=$ca SSL_CERT_FILE=$ca REQUESTS_CA_BUNDLE=$ca")
  fi
  tar -C "$root" -c . | docker import "${trust[@]}" -c 'CMD ["python3"]' - "$PYTHON" >/dev/null
  rm -rf "$root"
}

# A small image around static binaries of Debian 13, with the official image's paths, user, entry point and wget.
prometheus_images() {
  local root=$STACK_DIR/prometheus
  say "making stand-ins for $PROMETHEUS and $PUSHGATEWAY"
  rm -rf "$root" && mkdir -p "$root/context"
  ./engine.sh packages "$root/packages" prometheus promtool prometheus-pushgateway busybox-static
  cp "$root"/packages/usr/bin/{prometheus,promtool,prometheus-pushgateway,busybox} "$root/context/"
  (
    cd "$root/context"
    printf '%s\n' "FROM $PYTHON" 'COPY prometheus promtool /bin/' 'COPY busybox /bin/wget' 'RUN mkdir -p /etc/prometheus /prometheus && chown nobody:nogroup /prometheus' \
      'USER nobody' 'VOLUME ["/prometheus"]' 'WORKDIR /prometheus' 'ENTRYPOINT ["/bin/prometheus"]' \
      'CMD ["--config.file=/etc/prometheus/prometheus.yml", "--storage.tsdb.path=/prometheus"]' | docker build -q -t "$PROMETHEUS" -f - . >/dev/null
    printf '%s\n' "FROM $PYTHON" 'COPY prometheus-pushgateway /bin/pushgateway' 'COPY busybox /bin/wget' 'USER nobody' 'WORKDIR /pushgateway' \
      'ENTRYPOINT ["/bin/pushgateway"]' | docker build -q -t "$PUSHGATEWAY" -f - . >/dev/null
  )
  rm -rf "$root"
}

# Grafana's binary cannot be had without a registry. This knows the admin's password as Grafana does, and nothing else: from
# the environment when its database is made, and from then on by `grafana cli` alone.
grafana_image() {
  local context=$STACK_DIR/grafana
  say "making a stand-in for $GRAFANA"
  rm -rf "$context" && mkdir -p "$context"
  cp grafana_standin.py "$context/"
  docker build -q -t "$GRAFANA" -f - "$context" >/dev/null <<END
FROM $PROMETHEUS AS busybox
FROM $PYTHON
COPY --from=busybox /bin/wget /bin/wget
COPY --chmod=755 grafana_standin.py /usr/local/bin/grafana
RUN printf '#!/bin/sh\nexec grafana server\n' > /run.sh && chmod 755 /run.sh && install -d -o 472 /var/lib/grafana
USER 472
ENTRYPOINT ["/run.sh"]
END
  rm -rf "$context"
}

here "$PYTHON" || python_image
{ here "$PROMETHEUS" && here "$PUSHGATEWAY"; } || prometheus_images
here "$GRAFANA" || grafana_image
