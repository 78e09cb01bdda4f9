#!/bin/sh
# Give PostgreSQL's recovery one WAL or history file from a directory in which a restore staged them.
#
#     restore_command = 'sh restore-wal.sh STAGING "%f" "%p"'
#
# Promises
# - Exit 0: the file was copied, whole.
# - Exit 1: the file is known not to exist. STAGING/expected, which is written last, lists every file
#   that recovery can need; this one is not in it. PostgreSQL then takes this for the end of the
#   archive, or looks into pg_wal.
# - Exit 200, and one line on stderr: anything else, such as a listed file that is gone. Above 125,
#   PostgreSQL aborts recovery (RestoreArchivedFile() in src/backend/access/transam/xlogarchive.c);
#   from 1 to 125, it would end recovery early, as if all were well.
#
# Never does: move or link a file, because PostgreSQL recycles what it is given by overwriting it, and a
# staged file may share its content with the WAL archive.

set -u

abort() {
    printf 'restore-wal.sh: %s\n' "$1" >&2
    exit 200
}

[ $# -eq 3 ] || abort 'usage: restore-wal.sh STAGING "%f" "%p"'
staging=$1
name=$2
target=$3

[ -f "$staging/expected" ] || abort "cannot tell whether $name exists: $staging/expected is missing"
if [ -f "$staging/$name" ]; then
    cp "$staging/$name" "$target" || abort "cannot copy $staging/$name to $target"
    exit 0
fi
grep -qxF -e "$name" "$staging/expected"
case $? in
    0) abort "$staging/$name is gone, though it was staged for this recovery" ;;
    1) exit 1 ;;
    *) abort "cannot read $staging/expected" ;;
esac
