#!/usr/bin/env bash
# Fetches the data of a server that runs, over the network, as the RDB file that a new server starts with.
#
#   snapshot.sh old-host old-port /var/lib/redis/dump.rdb
set -euo pipefail

host=$1 port=$2 target=$3
# Whole, or not at all: a server that finds half a file does not start.
redis-cli -h "$host" -p "$port" --rdb "$target.part"
mv "$target.part" "$target"
