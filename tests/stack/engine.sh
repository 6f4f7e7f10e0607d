#!/usr/bin/env bash
# A Docker engine with Compose for the tests of the stack, on a machine that may have neither and may reach no registry.
#
#   tests/stack/engine.sh up      start one (or use the machine's own), print `export …` lines for it
#   tests/stack/engine.sh down    end the one that was started here, by its pid
#
# Debian's packages stand behind it: the engine from this release; Compose and Buildx from trixie, unpacked beside it.
set -euo pipefail
STACK_DIR=${STACK_DIR:-/var/tmp/detbench-stack}
SOCKET=unix://$STACK_DIR/docker.sock
BUILD_CACHE=12GB

say() { printf '%s\n' "$*" >&2; }

install_packages() {
  local missing=()
  for each in dockerd:docker.io iptables:iptables debootstrap:debootstrap; do
    PATH=$PATH:/usr/sbin:/sbin command -v "${each%%:*}" >/dev/null || missing+=("${each##*:}")
  done
  ((${#missing[@]})) || return 0
  say "installing ${missing[*]}"
  apt-get update -qq >&2
  DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}" >&2
}

# Downloads packages of Debian 13 with an apt configuration of its own, and unpacks them: trixie_packages TARGET NAME…
trixie_packages() {
  local target=$1 apt=$STACK_DIR/apt
  shift
  mkdir -p "$apt"/{lists/partial,cache/archives/partial,debs} "$target"
  if [ ! -s "$apt/sources.list" ]; then
    local mirror
    mirror=$(apt-cache policy | awk '/ bookworm\/main/ {print $2; exit}')
    printf 'deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] %s trixie main\n' "$mirror" > "$apt/sources.list"
  fi
  local options=(-oDir::Etc::SourceList="$apt/sources.list" -oDir::Etc::SourceParts=/dev/null
    -oDir::State::Lists="$apt/lists" -oDir::Cache="$apt/cache" -oAPT::Sandbox::User=root)
  ls "$apt"/lists/*Packages* >/dev/null 2>&1 || apt-get "${options[@]}" update -qq >&2
  for name in "$@"; do
    (cd "$apt/debs" && ls "${name}"_*.deb >/dev/null 2>&1 || apt-get "${options[@]}" download -qq "$name" >&2)
    dpkg -x "$apt/debs/${name}"_*.deb "$target"
  done
}

install_plugins() {
  if docker compose version >/dev/null 2>&1 && docker buildx version >/dev/null 2>&1; then return; fi
  say "unpacking Compose and Buildx"
  trixie_packages "$STACK_DIR/plugins" docker-compose docker-buildx
  mkdir -p ~/.docker/cli-plugins
  cp "$STACK_DIR"/plugins/usr/libexec/docker/cli-plugins/* ~/.docker/cli-plugins/
}

up() {
  if docker info >/dev/null 2>&1 && docker compose version >/dev/null 2>&1; then
    say "using the Docker engine of this machine"
    return
  fi
  mkdir -p "$STACK_DIR"
  install_packages
  install_plugins
  if ! DOCKER_HOST=$SOCKET docker info >/dev/null 2>&1; then
    say "starting dockerd in $STACK_DIR"
    PATH=$PATH:/usr/sbin:/sbin nohup dockerd --data-root "$STACK_DIR/data" --exec-root "$STACK_DIR/exec" -H "$SOCKET" \
      --pidfile "$STACK_DIR/pid" > "$STACK_DIR/dockerd.log" 2>&1 < /dev/null &
    for _ in $(seq 60); do
      DOCKER_HOST=$SOCKET docker info >/dev/null 2>&1 && break
      sleep 0.5
    done
    DOCKER_HOST=$SOCKET docker info >/dev/null 2>&1 || { tail -20 "$STACK_DIR/dockerd.log" >&2; exit 1; }
  fi
  echo "export DOCKER_HOST=$SOCKET"
}

# Every run builds images of gigabytes. Of those before nothing is kept but the layers that the next build can use.
down() {
  [ -f "$STACK_DIR/pid" ] || return 0
  DOCKER_HOST=$SOCKET docker image prune --force >/dev/null || true
  DOCKER_HOST=$SOCKET docker builder prune --force --keep-storage "$BUILD_CACHE" >/dev/null || true
  kill "$(cat "$STACK_DIR/pid")" 2>/dev/null || true
}

case ${1:-} in
  up) up ;;
  down) down ;;
  packages) shift; mkdir -p "$STACK_DIR"; trixie_packages "$@" ;;
  *) say "usage: $0 up | down | packages TARGET NAME…"; exit 2 ;;
esac
