#!/usr/bin/env bash
# Prepares a checkout: Debian packages (installed when root, named when not), a virtual environment in .venv with
# pinned requirements, the protobuf modules, and the `mycelia` command. Safe to repeat; does only what is missing.
#
#   tools/bootstrap.sh demo    what `make demo` needs
#   tools/bootstrap.sh dev     the same and what `make test` and `make bench` need
set -euo pipefail
cd "$(dirname "$0")/.."

level=${1:-dev}
case "$level" in demo | dev) ;; *) echo "usage: tools/bootstrap.sh demo|dev" >&2; exit 2 ;; esac
say() { printf '\033[2m[setup]\033[0m %s\n' "$*"; }
fail() { printf 'setup: %s\n' "$*" >&2; exit 1; }
PATH=$PATH:/usr/sbin:/sbin

# --- programs from Debian -------------------------------------------------------------------------------------
# command -> package
declare -A needed=([ip]=iproute2 [nft]=nftables [tcpdump]=tcpdump [curl]=curl [nginx]=nginx-light
                   [redis-server]=redis-server [redis-cli]=redis-tools [unshare]=util-linux)
if [ "$level" = dev ]; then
  needed[nghttp]=nghttp2-client
  needed[nghttpd]=nghttp2-server
  needed[systemd-analyze]=systemd
fi
missing=()
for program in "${!needed[@]}"; do
  command -v "$program" >/dev/null 2>&1 || missing+=("${needed[$program]}")
done

# The distribution's own interpreter first: it is optimised by profile, a plain build of the same version elsewhere on
# the PATH takes a tenth to a third longer. PYTHON=... chooses another.
python=""
for candidate in ${PYTHON:-} /usr/bin/python3.11 python3.11 python3.12 python3.13 python3; do
  if command -v "$candidate" >/dev/null 2>&1 &&
     "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
    python=$candidate
    break
  fi
done
[ -n "$python" ] || missing+=(python3 python3-venv)
if [ -n "$python" ] && ! "$python" -c 'import ensurepip, venv' >/dev/null 2>&1; then
  missing+=("$("$python" -c 'import sys; print(f"python3.{sys.version_info.minor}-venv")')")
fi

if [ "${#missing[@]}" -gt 0 ]; then
  mapfile -t missing < <(printf '%s\n' "${missing[@]}" | sort -u)
  command -v apt-get >/dev/null 2>&1 || fail "these programs are missing and there is no apt-get here: ${missing[*]}"
  [ "$(id -u)" -eq 0 ] || fail "some Debian packages are missing. Run this once, then repeat the command:
  sudo apt-get install --no-install-recommends ${missing[*]}"
  say "installing Debian packages: ${missing[*]}"
  # Servers that come with packages must not start on this host, now or at the next boot.
  guard=/usr/sbin/policy-rc.d
  placed_guard=""
  if [ ! -e "$guard" ]; then
    printf '#!/bin/sh\nexit 101\n' >"$guard" && chmod 755 "$guard" && placed_guard=1
    trap 'rm -f "$guard"' EXIT
  fi
  export DEBIAN_FRONTEND=noninteractive
  log=$(mktemp)
  { apt-get update && apt-get install -y --no-install-recommends "${missing[@]}"; } >"$log" 2>&1 ||
    { tail -n 20 "$log" >&2; rm -f "$log"; fail "apt-get could not install: ${missing[*]}"; }
  rm -f "$log"
  [ -z "$placed_guard" ] || { rm -f "$guard"; trap - EXIT; }
  for unit in nginx redis-server; do
    case " ${missing[*]} " in
      *" $unit"*) if command -v systemctl >/dev/null 2>&1; then systemctl disable "$unit" >/dev/null 2>&1 || true; fi ;;
    esac
  done
  if [ -z "$python" ]; then python=python3; fi
fi
"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || fail "Python 3.11 or newer is needed; $("$python" --version) was found"

# --- virtual environment --------------------------------------------------------------------------------------
want=$(cat requirements.txt requirements-demo.txt $([ "$level" = dev ] && echo requirements-dev.txt) pyproject.toml | sha256sum | cut -d' ' -f1)
stamp=.venv/.mycelia-$level
if [ ! -x .venv/bin/python ]; then
  say "creating .venv with $("$python" --version)"
  "$python" -m venv .venv
fi
if [ "$(cat "$stamp" 2>/dev/null || true)" != "$want" ]; then
  say "installing pinned requirements ($level)"
  .venv/bin/python -m pip install --quiet --disable-pip-version-check -r "requirements-$level.txt"
  .venv/bin/python -m pip install --quiet --disable-pip-version-check --no-build-isolation --no-deps --editable .
  echo "$want" >"$stamp"
fi

# --- protobuf modules -----------------------------------------------------------------------------------------
newest=$(find proto -name '*.proto' -newer proto/istio/workload_pb2.py 2>/dev/null | head -n 1 || true)
if [ ! -e proto/istio/workload_pb2.py ] || [ -n "$newest" ]; then
  say "generating protobuf modules"
  .venv/bin/python proto/generate.py
fi
