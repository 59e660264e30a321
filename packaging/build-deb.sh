#!/usr/bin/env bash
# Makes the Debian package from a module that is built:
#   packaging/build-deb.sh MODULE OUTPUT-FOLDER
# Needs nothing from a network. `make deb` builds the module first.
#
# By debhelper: what it does about permissions, dependencies, conffiles and checksums is what Debian does, and packaging/debian
# is what a reviewer there knows to read. cargo-deb would do it from Cargo.toml, and is itself a build of some minutes.
set -euo pipefail
cd "$(dirname "$0")/.."

module=$(realpath "$1")
mkdir -p "$2"
output=$(realpath "$2")
stage=$output/keyward
rm -rf "$stage"
mkdir -p "$stage/redis-server.service.d"

cp -r packaging/debian README.md DESIGN.md CHANGELOG.md redis.conf.example docs "$stage"
cp packaging/systemd/keyward.conf "$stage/redis-server.service.d"
cp "$module" "$stage/libkeyward.so"
python3 packaging/third_party.py >"$stage/third-party.txt"
packaging/settings.sh >"$stage/keyward.conf"

cd "$stage"
# The build dependencies are what setup.sh installs; cargo and libclang have done their work.
dpkg-buildpackage --build=binary --no-sign >"$output/build.log" 2>&1 || { cat "$output/build.log" >&2; exit 1; }
rm -rf "$stage"
printf 'built %s\n' "$output"/keyward_*.deb
