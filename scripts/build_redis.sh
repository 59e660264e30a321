#!/usr/bin/env bash
# Builds a Redis that moves slots atomically (8.4 and later), for the tests: no
# package of Debian 12 and no wheel has one. The source is that of Debian's
# experimental, from the archive that apt uses here, and is compared with the
# hash below. With jemalloc, as distributions build it: with the C library's
# allocator, MEMORY USAGE of a module's value that expires reads foreign memory
# in 8.6.3.
#
# Fails with 3 if the source cannot be had, since experimental keeps one version
# alone, or if it does not build here.
set -euo pipefail

version=8.6.3
sha256=58d0d1eb49a1ea6c2179659707fec171b1e2e2b8d5157ed2ec59d1d66ad5a654
binary=$(dirname "$0")/../.servers/redis-${version%.*}/redis-server

say() { printf 'build_redis: %s\n' "$*" >&2; }
cannot() { say "$*"; exit 3; }

[[ -x $binary ]] && { say "ready: redis $version"; exit 0; }

command -v apt-get >/dev/null || cannot "this needs apt"
archive=$(apt-get indextargets --format '$(REPO_URI)' 'Created-By: Packages' | grep -m1 '/debian/$') ||
    cannot "apt knows no archive of Debian"

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
say "fetching the source of redis $version"
/usr/lib/apt/apt-helper download-file \
    "${archive}pool/main/r/redis/redis_$version.orig.tar.gz" "$folder/redis.tar.gz" "SHA256:$sha256" >&2 ||
    cannot "the source of redis $version is not in the archive any more"
tar -xzf "$folder/redis.tar.gz" -C "$folder" --strip-components 1
say "building it, some three minutes"
make -s -j"$(nproc)" -C "$folder/src" OPTIMIZATION=-O1 redis-server >"$folder/log" 2>&1 ||
    { tail -20 "$folder/log" >&2; cannot "it does not build here"; }
mkdir -p "$(dirname "$binary")"
mv "$folder/src/redis-server" "$binary"
say "ready: redis $version"
