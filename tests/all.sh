#!/bin/sh
# Installs what the tests need on a fresh Debian machine with Rust, and runs them all.
#
#   tests/all.sh                    every test of the project (minutes)
#   tests/all.sh --long [PART...]   the long runs, at most 45 minutes each; all of them if no part is named:
#       models      the exhaustive worlds with larger bounds, and more outages in the simulation
#       faults      more repetitions in the fault matrix and at the doors, and the rows that need root
#       fuzz        every fuzz target for five minutes
#       powercut    the power-cut rig (root, /dev/fuse and loop devices)
#
# With PGW_DATA=DIRECTORY the samples below that directory go through the doors, besides those in the repository (tests/gateway/corpus.rs).
set -eu
cd "$(dirname "$0")/.."

if ! command -v mosquitto >/dev/null 2>&1 && ! [ -x /usr/sbin/mosquitto ]; then
    echo "installing Mosquitto from Debian" >&2
    if [ "$(id -u)" != 0 ]; then
        echo "Mosquitto is missing and this is not root: run 'apt-get install mosquitto' first" >&2
        exit 69
    fi
    apt-get -o DPkg::Lock::Timeout=300 update
    # Debian starts a broker when the package is installed; the tests start their own.
    printf '#!/bin/sh\nexit 101\n' >/usr/sbin/policy-rc.d.pgw
    chmod +x /usr/sbin/policy-rc.d.pgw
    [ -e /usr/sbin/policy-rc.d ] || cp /usr/sbin/policy-rc.d.pgw /usr/sbin/policy-rc.d
    DEBIAN_FRONTEND=noninteractive apt-get -o DPkg::Lock::Timeout=300 install -y --no-install-recommends mosquitto || failed=1
    cmp -s /usr/sbin/policy-rc.d.pgw /usr/sbin/policy-rc.d && rm -f /usr/sbin/policy-rc.d
    rm -f /usr/sbin/policy-rc.d.pgw
    [ -z "${failed:-}" ] || exit 69
fi

# Independent client programs for tests/gateway/clients.rs: pinned, kept in target/clients. Half a minute the first time.
# Node takes minutes to install if it is missing, so only the long run installs it.
clients="$PWD/target/clients"
from_pypi="hl7==0.4.5 schemathesis==4.32.5 cloudevents==2.2.0"
from_npm="simple-hl7@3.3.0 node-hl7-client@4.0.0 cloudevents@10.0.0"
install_debian() {
    if [ "$(id -u)" != 0 ]; then
        echo "$* missing and this is not root: run 'apt-get install $*' first" >&2
        exit 69
    fi
    apt-get -o DPkg::Lock::Timeout=300 update
    DEBIAN_FRONTEND=noninteractive apt-get -o DPkg::Lock::Timeout=300 install -y --no-install-recommends "$@"
}
has_node() { command -v node >/dev/null 2>&1 && command -v npm >/dev/null 2>&1; }
command -v curl >/dev/null 2>&1 || install_debian curl
command -v age >/dev/null 2>&1 || install_debian age
[ "${1:-}" != --long ] || has_node || install_debian nodejs npm
if has_node; then node=yes; else node=no; fi
install_clients() {
    rm -rf "$clients"
    mkdir -p "$clients"
    # Debian's python3 has no venv of its own.
    python3 -m venv "$clients/python" 2>/dev/null || {
        (install_debian python3 python3-venv) && python3 -m venv --clear "$clients/python" || return 1
    }
    "$clients/python/bin/pip" install --quiet --disable-pip-version-check $from_pypi || return 1
    if [ $node = yes ]; then
        mkdir "$clients/node"
        npm install --silent --no-audit --no-fund --ignore-scripts --prefix "$clients/node" $from_npm || return 1
    fi
    echo "$from_pypi $from_npm node=$node" >"$clients/installed"
}
if [ "$(cat "$clients/installed" 2>/dev/null)" != "$from_pypi $from_npm node=$node" ]; then
    echo "installing clients from PyPI and npm" >&2
    install_clients || {
        [ "${1:-}" != --long ] || exit 69
        # As with the advisories: an unreachable registry is reported clearly, and the other tests run.
        echo "NOT CHECKED: the doors, the contract and the wire with programs of other people, which could not be installed from PyPI and npm" >&2
        clients=
    }
fi
if [ -n "$clients" ]; then
    PGW_CLIENTS="$clients"
    export PGW_CLIENTS
    if [ $node = yes ]; then
        PGW_CLIENTS_NODE=1
        export PGW_CLIENTS_NODE
    fi
fi

# Most tests wait for processes, disks and links: two per processor keep it busy.
RUST_TEST_THREADS="${RUST_TEST_THREADS:-$(($(nproc) * 2))}"
export RUST_TEST_THREADS

if [ "${1:-}" != --long ]; then
    # --tests: skips the documentation tests (there are none).
    exec cargo test --locked --workspace --tests
fi

shift
[ $# -gt 0 ] || set -- models faults fuzz powercut
for part in "$@"; do
    printf '\n== %s\n' "$part"
    case $part in
    models) PGW_LONG=1 cargo test --locked --release --test model -- --include-ignored ;;
    faults) PGW_LONG=1 cargo test --locked --release --test pipeline --test gateway -- --include-ignored ;;
    fuzz) fuzz/run.sh 300 ;;
    powercut) tests/powercut/run.sh ;;
    *)
        echo "there is no part $part: models, faults, fuzz, powercut" >&2
        exit 64
        ;;
    esac
done
