#!/usr/bin/env bash
# Installs the system packages that the named parts of the project need and
# that are missing:   scripts/setup.sh [part ...]
#
#   server   redis-server and redis-cli, 7.0 or later
#   build    a C compiler and libclang (bindgen reads the server's module header)
#   python   python3 with venv
#   bench    valgrind (instructions per command are counted with callgrind)
#   peers    memcached, with which the tests compare
#   node     node and npm, for the examples in JavaScript
#   redis    a C++ compiler, for scripts/build_redis.sh
#   clock    libfaketime: the tests set the server's clock
#   database PostgreSQL, to which the example's worker writes in the tests
#   monitoring
#            Prometheus and its exporter for Redis, which scrape in the tests
#   browser  Chromium, in which the tests look at the dashboard, and a typeface:
#            a bare machine has none
#   package  debhelper, which makes the Debian package, and lintian, which checks it
#
# Needs root or sudo only when something is missing, and then knows apt
# (Debian, Ubuntu). Elsewhere it says what to install by hand. Running it again
# changes nothing. Rust is not installed here: which toolchain is used is the
# contributor's choice.
set -euo pipefail

say() { printf 'setup: %s\n' "$*"; }
die() { printf 'setup: %s\n' "$*" >&2; exit 1; }

has_libclang() {
    # Both halves: the library that bindgen loads, and the compiler's own
    # headers, without which it does not find stddef.h.
    [[ -n ${LIBCLANG_PATH:-} ]] && return 0
    compgen -G '/usr/lib/llvm-*/lib/libclang*.so*' >/dev/null &&
        compgen -G '/usr/lib/llvm-*/lib/clang/*/include/stddef.h' >/dev/null
}

# Debian keeps it off the PATH.
has_postgres() { command -v postgres || compgen -G '/usr/lib/postgresql/*/bin/postgres'; }

missing=()
need() { # package, probe command...
    local package=$1
    shift
    "$@" >/dev/null 2>&1 || missing+=("$package")
}

for part in "$@"; do
    case $part in
        server) need redis-server command -v redis-server ;;
        build)
            command -v cargo >/dev/null || die "cargo not found: install Rust first (https://www.rust-lang.org/tools/install)"
            need build-essential command -v cc
            need libclang-dev has_libclang
            ;;
        python) need python3-venv python3 -c 'import ensurepip, venv' ;;
        bench) need valgrind command -v valgrind ;;
        peers) need memcached command -v memcached ;;
        node)
            need nodejs command -v node
            need npm command -v npm
            ;;
        redis)
            need g++ command -v g++
            need make command -v make
            ;;
        clock) need faketime compgen -G '/usr/lib/*/faketime/libfaketime.so.1' ;;
        database) need postgresql has_postgres ;;
        monitoring)
            need prometheus command -v prometheus
            need prometheus-redis-exporter command -v prometheus-redis-exporter
            ;;
        browser)
            need chromium command -v chromium
            need fonts-inter test -d /usr/share/fonts/opentype/inter
            need fonts-dejavu-core test -d /usr/share/fonts/truetype/dejavu
            ;;
        package)
            need debhelper command -v dh
            need lintian command -v lintian
            ;;
        *) die "unknown part '$part' (known: server build python bench peers node database monitoring browser package redis clock)" ;;
    esac
done

if ((${#missing[@]})); then
    command -v apt-get >/dev/null || die "please install: ${missing[*]} (names of the Debian packages)"
    if ((EUID == 0)); then
        as_root=(env)
    elif command -v sudo >/dev/null; then
        as_root=(sudo)
    else
        die "neither root nor sudo: please have these installed: ${missing[*]}"
    fi

    # Debian starts services of redis-server, postgresql and prometheus when the
    # packages are installed. The project does not use them: a policy file, removed
    # again, keeps them from taking their ports now. They are left enabled as
    # the packages leave them.
    policy=/usr/sbin/policy-rc.d
    if [[ ! -e $policy ]]; then
        trap '"${as_root[@]}" rm -f "$policy"' EXIT
        printf '#!/bin/sh\nexit 101\n' | "${as_root[@]}" tee "$policy" >/dev/null
        "${as_root[@]}" chmod 755 "$policy"
    fi

    say "installing ${missing[*]}"
    "${as_root[@]}" apt-get update -qq
    "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends "${missing[@]}"
fi

for part in "$@"; do
    if [[ $part == server ]]; then
        version=$(redis-server --version | sed -n 's/.* v=\([0-9]*\.[0-9]*\).*/\1/p')
        ((${version%%.*} >= 7)) || die "redis-server is $version, Keyward needs 7.0 or later"
    fi
done
say "ready: $*"
