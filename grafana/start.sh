#!/bin/sh
# Starts Grafana with the admin's password of .env, on the first start and on every later one.
set -eu
if [ -f /var/lib/grafana/grafana.db ]; then
  # Grafana takes a password from its environment only when it makes its database.
  if [ -n "${GRAFANA_ADMIN_PASSWORD:-}" ]; then
    printf '%s' "$GRAFANA_ADMIN_PASSWORD" |
      grafana cli --homepath "${GF_PATHS_HOME:-/usr/share/grafana}" admin reset-admin-password --password-from-stdin ||
      { echo "error: GRAFANA_ADMIN_PASSWORD was not taken; see above, and change it in .env" >&2; exit 1; }
  fi
else
  # Without a password of yours the admin gets a random one that nobody knows: looking needs no login.
  export GF_SECURITY_ADMIN_PASSWORD="${GRAFANA_ADMIN_PASSWORD:-$(head -c 24 /dev/urandom | base64)}"
fi
exec /run.sh
