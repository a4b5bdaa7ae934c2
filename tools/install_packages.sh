#!/usr/bin/env bash
# Installs the Debian 12 packages that a group of tasks needs; does nothing, quickly, when they are
# all there. Usage: tools/install_packages.sh build|test|clang|fuzz|lint|bench|coverage|docs ...
set -euo pipefail

packages_of() {
  case "$1" in
    build) echo g++ cmake ninja-build ccache libcli11-dev libfmt-dev libspdlog-dev liburing-dev \
                libisal-dev netcat-openbsd ;;
    test) echo binutils python3 libgtest-dev libgmock-dev librapidcheck-dev pkgconf relacy-dev \
               util-linux ;;
    clang | fuzz) echo clang-19 libclang-rt-19-dev ;;
    lint) echo clang-format-19 clang-tidy-19 python3 ;;
    bench) echo python3 python3-matplotlib libevent-dev libuv1-dev libasio-dev ;;
    coverage) echo gcovr ;;
    docs) echo doxygen python3 ;;
    *) return 1 ;;
  esac
}

usage="usage: $0 build|test|clang|fuzz|lint|bench|coverage|docs ..."
if [ $# -eq 0 ]; then
  echo "$usage" >&2
  exit 2
fi

wanted=()
for group in "$@"; do
  if ! names=$(packages_of "$group"); then
    echo "$0: there is no group '$group'" >&2
    echo "$usage" >&2
    exit 2
  fi
  read -ra list <<<"$names"
  wanted+=("${list[@]}")
done

if ! command -v dpkg-query >/dev/null || ! command -v apt-get >/dev/null; then
  echo "This is not a Debian system, so nothing is installed. Penstock needs what Debian 12 calls:" >&2
  echo "  ${wanted[*]}" >&2
  exit 0
fi

installed=$(dpkg-query -W -f='${db:Status-Status} ${Package}\n' "${wanted[@]}" 2>/dev/null |
  sed -n 's/^installed //p' || true)
missing=()
for name in "${wanted[@]}"; do
  if ! grep -qxF -- "$name" <<<"$installed" && [[ " ${missing[*]-} " != *" $name "* ]]; then
    missing+=("$name")
  fi
done
if [ ${#missing[@]} -eq 0 ]; then
  exit 0
fi

as_root=()
if [ "$(id -u)" -ne 0 ]; then
  if ! command -v sudo >/dev/null; then
    echo "These packages are missing, and installing them needs root or sudo:" >&2
    echo "  apt-get install --no-install-recommends ${missing[*]}" >&2
    exit 1
  fi
  as_root=(sudo)
fi

apt() {
  "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive \
    apt-get -qq -o DPkg::Lock::Timeout=600 -o Dpkg::Use-Pty=0 "$@"
}
install() { apt install -y --no-install-recommends "${missing[@]}" >/dev/null; }

echo "Installing: ${missing[*]}"
# A fresh system has no package lists: its first attempt could only fail.
if compgen -G '/var/lib/apt/lists/*Packages*' >/dev/null && install; then
  exit 0
fi
echo "Updating the package lists."
if ! { apt update && install; }; then
  echo "The packages could not be installed. By hand:" >&2
  echo "  apt-get update && apt-get install --no-install-recommends ${missing[*]}" >&2
  exit 1
fi
