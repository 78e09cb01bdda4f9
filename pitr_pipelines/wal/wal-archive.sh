#!/bin/sh
# Copy one finished WAL file of a PostgreSQL cluster into its archive directory.
#
#     archive_command = 'wal-archive.sh /backup/wal/order-db "%p" "%f"'
#
# Promises
# - Exit 0 means that the file's content, its modification time and its directory entry are on disk.
# - A file appears under its name whole, or not at all. It keeps the modification time of the source,
#   which is when the server last wrote to it.
# - A file that is already there with the same content is a success: a crash between the copy and
#   the reply must not wedge the server.
# - One archive holds one cluster. ARCHIVE_DIR/system_identifier names it: the decimal number that
#   pg_controldata prints. `pitr init-db` writes it; without it, the first segment does. A cluster that
#   pg_upgrade or initdb made has another identifier, and needs a directory of its own.
# - Every failure is one line on stderr and an exit status from 1 to 125, so that PostgreSQL keeps the
#   file and tries again. Killed at any moment, this leaves at most a hidden .wal-archive.*.tmp, which
#   the next try for that file removes, as does any call after an hour.
#
# It never overwrites, changes or removes a file that it did not make itself in this call or as such a
# temporary file, and never creates ARCHIVE_DIR: a volume that is not mounted must not be filled silently.
#
# Needs only what the Debian and Alpine images of PostgreSQL have (dash or busybox ash; od, dd, touch,
# ln, sync, rm, cmp, find), and a file system with hard links. Each process costs about a millisecond
# a segment, which is why some lines below do two things at once.

set -u
umask 027
LC_ALL=C
export LC_ALL

temporary=

fail() {
    [ -z "$temporary" ] || rm -f "$temporary"
    printf 'wal-archive.sh: %s\n' "$1" >&2
    exit 1
}

# The message of a failed tool in one line: its first one, or the status when it said nothing.
reason() {
    said=${1%%"
"*}
    printf '%s' "${said:-it ended with status $2}"
}

# Sets system_identifier and segment_size from the long page header that every segment starts with
# (XLogLongPageHeaderData: xlp_info at 2, xlp_sysid at 24, xlp_seg_size at 32, in the byte order of the
# machine, which is also od's). One od prints every 16 bytes as 8 short, 4 int and 2 long numbers.
read_header() {
    set -- $(od -An -v -tu2 -tu4 -tu8 -N40 "$1" 2>/dev/null)
    [ $# -eq 35 ] && [ $(($2 & 2)) -ne 0 ] || return 1 # 2 is XLP_LONG_HEADER
    system_identifier=${28}
    segment_size=${33}
}

# Files without a page header belong to the cluster that runs us: PostgreSQL does so in its data
# directory, with a relative path, and pg_control starts with the identifier. Otherwise: not known.
read_control_file() {
    case $1 in pg_wal/*) ;; *) return 1 ;; esac
    set -- $(od -An -v -tu8 -N8 global/pg_control 2>/dev/null)
    [ $# -eq 1 ] || return 1
    system_identifier=$1
}

# Makes ARCHIVE_DIR/system_identifier for an archive that has none. Linking fails if another process
# was faster; then that one's word counts, and the comparison that follows decides.
claim_archive() {
    mine=$system_identifier
    for held in "$archive"/$hex8$hex8$hex8; do
        [ -f "$held" ] || break
        read_header "$held" && [ "$system_identifier" = "$mine" ] || fail "refused $name: $archive/system_identifier is missing, and the WAL already in $archive is not known to be of this cluster ($mine); write the identifier of the cluster it belongs to into that file"
        break
    done
    system_identifier=$mine
    temporary=$archive/.wal-archive.system_identifier.$$.tmp
    said=$(
        exec 2>&1
        printf '%s\n' "$mine" >"$temporary" && sync "$temporary"
    ) || fail "cannot write to $archive: $(reason "$said" $?); make room or fix access there, PostgreSQL will try again"
    if ln "$temporary" "$identity" 2>/dev/null; then
        printf 'wal-archive.sh: %s is now the archive of the cluster with system identifier %s\n' "$archive" "$mine" >&2
    fi
    rm -f "$temporary"
    temporary=
}

# Once a file is in place, whatever is left of other tries for it is rubbish, even if one is still
# running: it finds the file and compares. Those for other names are only known to be dead when old.
sweep() {
    set -- "$archive"/.wal-archive.*.tmp
    case $# in
        1) exec rm -f "$1" ;;
        *) exec find "$@" \( -name ".wal-archive.$name.*" -o -mmin +60 \) -exec rm -f {} + ;;
    esac
}

if [ $# -ne 3 ]; then
    echo 'usage: wal-archive.sh ARCHIVE_DIR "%p" "%f"' >&2
    exit 2
fi
archive=$1
source=$2
name=$3
case $source in -*) source=./$source ;; esac

hex4='[0-9A-F][0-9A-F][0-9A-F][0-9A-F]'
hex8=$hex4$hex4
case $name in
    $hex8$hex8$hex8 | $hex8$hex8$hex8.partial) is_segment=yes ;;
    $hex8.history | $hex8$hex8$hex8.$hex8.backup) is_segment=no ;;
    *) fail "refused $name: this is no name of a WAL, history, backup or partial file; archive_command must pass \"%p\" \"%f\"" ;;
esac
case $archive in /*) ;; *) fail "refused $name: '$archive' is no full path; it would lie inside the server's own data directory" ;; esac
[ -d "$archive" ] || fail "refused $name: no directory $archive; mount its volume, or create it once with 'pitr init-db' or mkdir"
[ -f "$source" ] || fail "cannot archive $name: no file $source; run this in the server's data directory, or pass the full path"
final=$archive/$name
identity=$archive/system_identifier

system_identifier=
if [ $is_segment = yes ]; then
    read_header "$source" || fail "refused $name: $source does not start with the long page header of a WAL segment, so it is damaged or no WAL; look at it with pg_waldump"
else
    read_control_file "$source"
fi
if [ -n "$system_identifier" ]; then
    [ -e "$identity" ] || claim_archive
    owner=
    { read -r owner <"$identity"; } 2>/dev/null
    [ "$system_identifier" = "$owner" ] || fail "refused $name: it comes from the cluster with system identifier $system_identifier, but $identity says '$owner'; give this server an archive directory of its own"
fi

if [ ! -e "$final" ]; then
    # Unique among the processes that could write here at once, also in containers that share the
    # directory and may well have the same process number: noclobber creates the file exclusively.
    attempt=0
    temporary=$archive/.wal-archive.$name.$$.tmp
    while [ -e "$temporary" ]; do
        attempt=$((attempt + 1))
        temporary=$archive/.wal-archive.$name.$$-$attempt.tmp
    done
    said=$(
        exec 2>&1
        set -C
        dd if="$source" bs=262144 conv=fsync >"$temporary"
    ) || fail "cannot copy $source into $archive: $(reason "$said" $?); make room or fix access there, PostgreSQL will try again"
    if [ $is_segment = yes ]; then
        # dd's own count saves a process; segments are a whole number of its blocks.
        case $said in
            "$((segment_size / 262144))+0 records in"*) ;;
            *) fail "refused $name: $source is not the $segment_size bytes long that its header says, so it is damaged; look at it with pg_waldump" ;;
        esac
    fi
    said=$(exec touch -c -r "$source" "$temporary" 2>&1) || fail "cannot set the time of $temporary: $(reason "$said" $?); fix access there, PostgreSQL will try again"
    # Not mv: only a link is put in place atomically AND never over a file of that name.
    if said=$(exec ln "$temporary" "$final" 2>&1); then
        made=yes
    elif [ -e "$final" ]; then
        made=no
    else
        fail "cannot put $name in place: $(reason "$said" 1); $archive must be writable and on a file system with hard links"
    fi
else
    made=no
fi

if [ $made = no ]; then
    cmp -s "$source" "$final"
    case $? in
        0) ;;
        1) fail "refused $name: $final exists with other content and was left as it is; find out which server wrote it (do two share this archive?), and move it away only if nobody needs it" ;;
        *) fail "cannot compare $source with $final, which exists; make both readable, PostgreSQL will try again" ;;
    esac
fi

# Also for a file that was there before: its maker may have died before this line. The sweep may be
# lost in a crash and has a whole directory to read, so it runs while this waits for the disk.
sweep 2>/dev/null &
said=$(exec sync "$final" "$archive" 2>&1) || fail "cannot sync $final: $(reason "$said" $?); the disk below $archive fails, PostgreSQL will try again"
wait
exit 0
