#!/bin/sh
# Makes the secrets that are not there yet: deploy/make-secrets.sh [DIRECTORY]; default: ./secrets
#
# The directory is for its owner alone (0700), and that is what protects them on this machine. The files are readable
# by everybody who gets that far: Docker mounts each into the containers as it is, for users with other numbers.
set -eu
umask 077

directory=${1:-secrets}
mkdir -p "$directory"
chmod 700 "$directory"

random() { od -An -v -tx1 -N"$1" /dev/urandom | tr -d ' \n'; }
keep() { # NAME, content on standard input
    if [ -s "$directory/$1" ]; then
        cat >/dev/null
    else
        cat >"$directory/$1"
        echo "made $directory/$1"
    fi
    chmod 644 "$directory/$1"
}

for name in order_db_password inventory_db_password pitr_password dagster_db_password; do
    random 24 | keep "$name"
done

# Keys for the store that comes along to try it. For a real one, write yours into aws_credentials.
key=$(random 10)
secret=$(random 20)
keep aws_credentials <<E1
[default]
aws_access_key_id = $key
aws_secret_access_key = $secret
E1
key=$(sed -n 's/^aws_access_key_id *= *//p' "$directory/aws_credentials")
secret=$(sed -n 's/^aws_secret_access_key *= *//p' "$directory/aws_credentials")
keep store_users.json <<E2
{"identities": [{"name": "backup", "credentials": [{"accessKey": "$key", "secretKey": "$secret"}],
  "actions": ["Admin", "Read", "Write", "List", "Tagging"]}]}
E2
