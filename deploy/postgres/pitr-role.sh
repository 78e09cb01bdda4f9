#!/bin/sh
# Makes the backup role in a stock postgres container, with four rights and no more, and lets it in for replication.
#
# On an empty data directory the image runs it by itself, from /docker-entrypoint-initdb.d. On a server that has been
# there before, once, and again after the secret changed:
#
#     docker compose exec --user postgres order-db sh /docker-entrypoint-initdb.d/pitr-role.sh
#
# The password comes from the compose secret pitr_password; it is in no argument, no variable and no log.
set -eu

secret=/run/secrets/pitr_password
[ -r "$secret" ] || {
    echo "pitr-role.sh: cannot read $secret; is the secret pitr_password among this service's secrets?" >&2
    exit 1
}

psql --no-psqlrc --quiet --set ON_ERROR_STOP=1 --username "${POSTGRES_USER:-postgres}" --dbname postgres <<'SQL'
SET log_statement = 'none';
SET log_min_error_statement = 'panic';
SET log_min_duration_statement = -1;
SET password_encryption = 'scram-sha-256';
\set password `cat /run/secrets/pitr_password`
SELECT 'CREATE ROLE pitr' WHERE NOT EXISTS (SELECT FROM pg_roles WHERE rolname = 'pitr') \gexec
ALTER ROLE pitr LOGIN REPLICATION PASSWORD :'password';
GRANT pg_monitor TO pitr;
GRANT CONNECT ON DATABASE postgres TO pitr;
GRANT EXECUTE ON FUNCTION pg_catalog.pg_create_restore_point(text) TO pitr;
GRANT EXECUTE ON FUNCTION pg_catalog.pg_switch_wal() TO pitr;
SQL

# The images let everybody in with a password (scram-sha-256), but nobody for replication from elsewhere.
hba=$(psql --no-psqlrc --quiet --tuples-only --no-align --username "${POSTGRES_USER:-postgres}" --dbname postgres \
    --command 'SHOW hba_file')
line='host replication pitr all scram-sha-256'
grep -qxF "$line" "$hba" || printf '%s\n' "$line" >>"$hba"
psql --no-psqlrc --quiet --username "${POSTGRES_USER:-postgres}" --dbname postgres --command 'SELECT pg_reload_conf()' >/dev/null
echo 'pitr-role.sh: the role pitr is ready'
