#!/bin/sh
# Give PostgreSQL's recovery one WAL or history file that a restore's feeder makes ready.
#
#     restore_command = 'sh restore-wal.sh DIRECTORY "%f" "%p"'
#
# Promises
# - Exit 0: the file was handed over, whole.
# - Exit 1: the file is known not to exist: DIRECTORY/expected lists every file that recovery can need,
#   and this one is not in it. PostgreSQL then takes this for the end of the archive, or looks into pg_wal.
# - Exit 200, and one line on stderr: anything else, such as a file that could not be made. Above 125,
#   PostgreSQL aborts recovery (RestoreArchivedFile() in src/backend/access/transam/xlogarchive.c);
#   from 1 to 125, it would end recovery early, as if all were well.
#
# A file that is not ready is asked for in DIRECTORY/want and waited for, for as long as the feeder is
# seen to live: it counts up in DIRECTORY/alive. What it cannot make, it says in DIRECTORY/failed.
# A segment is moved, not copied: it was made for this recovery alone.

set -u

abort() {
    printf 'restore-wal.sh: %s\n' "$1" >&2
    exit 200
}

# Does not return if the file was handed over, and returns if it is not there.
hand_over() {
    case $name in
        *.history) cp "$directory/$name" "$target" && exit 0 ;;
        *) mv -f "$directory/$name" "$target" && exit 0 ;;
    esac
    [ ! -f "$directory/$name" ] || abort "cannot bring $directory/$name to $target"
}

beat() {
    read -r count <"$directory/alive" || abort "cannot read $directory/alive"
    printf '%s' "$count"
}

[ $# -eq 3 ] || abort 'usage: restore-wal.sh DIRECTORY "%f" "%p"'
directory=$1
name=$2
target=$3

[ -f "$directory/expected" ] || abort "cannot tell whether $name exists: $directory/expected is missing"
[ ! -f "$directory/$name" ] || hand_over
grep -qxF -e "$name" "$directory/expected"
case $? in
    0) ;;
    1) exit 1 ;;
    *) abort "cannot read $directory/expected" ;;
esac

printf '%s\n' "$name" >"$directory/want" || abort "cannot ask for $name in $directory/want"
tries=0
before=$(beat) || exit 200
while :; do
    if [ -f "$directory/$name" ]; then
        # First, so that a request that was met is never taken for another one.
        rm -f "$directory/want"
        hand_over
    fi
    [ ! -f "$directory/failed" ] || abort "$(cat "$directory/failed")"
    sleep 0.01
    tries=$((tries + 1))
    if [ "$tries" -ge "${PITR_PATIENCE:-30000}" ]; then # five minutes or more
        now=$(beat) || exit 200
        [ "$now" != "$before" ] || abort "$name does not come: the restore that feeds this recovery is gone"
        before=$now
        tries=0
    fi
done
