#!/bin/sh
# Installs what the rig needs on a fresh Debian machine, and builds it.
set -eu
cd "$(dirname "$0")"
[ "$(id -u)" = 0 ] || { echo "run as root: the rig mounts file systems" >&2; exit 1; }
need=
command -v mkfs.ext4 >/dev/null || need="$need e2fsprogs"
command -v losetup >/dev/null || need="$need mount"
command -v cc >/dev/null || need="$need gcc libc6-dev"
command -v cargo >/dev/null || { echo "cargo (Rust 1.90 or later) is needed" >&2; exit 1; }
if [ -n "$need" ]; then
    apt-get -o DPkg::Lock::Timeout=300 update
    apt-get -o DPkg::Lock::Timeout=300 install -y --no-install-recommends $need
fi
[ -c /dev/fuse ] || { echo "no /dev/fuse" >&2; exit 1; }
losetup --find >/dev/null || { echo "no free loop device" >&2; exit 1; }
cargo build --release
