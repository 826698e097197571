#!/usr/bin/env bash
# Installs what the tests use of the system from Debian's packages: where that may be done, which is as root.
# Elsewhere it says what is missing; the tests that need it are then skipped by name, and fail in CI.
set -euo pipefail

missing=()
for part in prometheus:prometheus promtool:prometheus chromium:chromium curl:curl; do
    command -v "${part%%:*}" >/dev/null || missing+=("${part##*:}")
done
ls /usr/lib/postgresql/*/bin/postgres >/dev/null 2>&1 || missing+=(postgresql)
[ ${#missing[@]} -eq 0 ] && exit 0
if [ "$(id -u)" -ne 0 ] || ! command -v apt-get >/dev/null; then
    echo "not installed, and this is not root on Debian: ${missing[*]}" >&2
    exit 0
fi
export DEBIAN_FRONTEND=noninteractive
apt-get update -qq
# Of Postgres the program alone is wanted, and no server that runs.
mkdir -p /etc/postgresql-common
[ -e /etc/postgresql-common/createcluster.conf ] || echo "create_main_cluster = false" >/etc/postgresql-common/createcluster.conf
apt-get install --yes -qq --no-install-recommends "${missing[@]}" >/dev/null
