#!/usr/bin/env bash
# Prints /etc/redis/keyward.conf: the settings of redis.conf.example, so that there is one text of them.
set -euo pipefail
cd "$(dirname "$0")/.."

cat <<'TEXT'
# The settings of Keyward, all at their defaults: remove the "#" to set one.
#
# redis.conf includes this file, and loads the module itself:
#
#   loadmodule /usr/lib/redis/modules/libkeyward.so
#   include /etc/redis/keyward.conf
#
# The line with loadmodule must not stand in an included file: CONFIG REWRITE
# would write it into redis.conf once more, and the server would not start.
# What CONFIG REWRITE writes of settings goes to the end of redis.conf, and wins
# over this file.
TEXT
# From the heading KEYWARD to the next one, without them.
sed -n '/^#* KEYWARD #*$/,/^#* NETWORK #*$/ { /^##/d; p }' redis.conf.example | sed -e '${/^$/d}'
