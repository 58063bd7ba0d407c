#!/bin/sh
# Installs what the tests need on a fresh Debian machine with Rust, and runs them all.
#
#   tests/all.sh            every test of the project (minutes)
#   tests/all.sh --long     also the power-cut rig and the long fault runs (an hour)
set -eu
cd "$(dirname "$0")/.."

if ! command -v mosquitto >/dev/null 2>&1 && ! [ -x /usr/sbin/mosquitto ]; then
    echo "installing Mosquitto from Debian" >&2
    if [ "$(id -u)" != 0 ]; then
        echo "Mosquitto is missing and this is not root: run 'apt-get install mosquitto' first" >&2
        exit 69
    fi
    apt-get -o DPkg::Lock::Timeout=300 update
    # Debian starts a broker when the package is installed: the tests start their own.
    printf '#!/bin/sh\nexit 101\n' >/usr/sbin/policy-rc.d.pgw
    chmod +x /usr/sbin/policy-rc.d.pgw
    [ -e /usr/sbin/policy-rc.d ] || cp /usr/sbin/policy-rc.d.pgw /usr/sbin/policy-rc.d
    DEBIAN_FRONTEND=noninteractive apt-get -o DPkg::Lock::Timeout=300 install -y --no-install-recommends mosquitto || failed=1
    cmp -s /usr/sbin/policy-rc.d.pgw /usr/sbin/policy-rc.d && rm -f /usr/sbin/policy-rc.d
    rm -f /usr/sbin/policy-rc.d.pgw
    [ -z "${failed:-}" ] || exit 69
fi

if ! command -v age >/dev/null 2>&1; then
    echo "installing age from Debian" >&2
    if [ "$(id -u)" != 0 ]; then
        echo "age is missing and this is not root: run 'apt-get install age' first" >&2
        exit 69
    fi
    apt-get -o DPkg::Lock::Timeout=300 update
    DEBIAN_FRONTEND=noninteractive apt-get -o DPkg::Lock::Timeout=300 install -y --no-install-recommends age || exit 69
fi

cargo test --locked

if [ "${1:-}" = --long ]; then
    PGW_LONG=1 cargo test --locked --release
    tests/powercut/run.sh
fi
