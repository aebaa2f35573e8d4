#!/bin/sh
# Makes the secrets that the manifests refer to, with random values that are neither shown nor written to disk.
# A second run is refused, since the database keeps the first password.
set -eu
namespace=${1:-alignkit}
password=$(openssl rand -hex 24)

secret() { # NAME KEY; the value comes from standard input, so that no list of processes shows it
    kubectl --namespace "$namespace" create secret generic "$1" --from-file="$2=/dev/stdin"
}

printf %s "$password" | secret alignkit-postgres password
printf %s "postgresql+psycopg://alignkit:$password@postgres:5432/alignkit" | secret alignkit-database url
openssl rand -hex 32 | tr -d '\n' | secret alignkit-ray token
