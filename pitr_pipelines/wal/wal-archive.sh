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
#   the reply must not wedge the server. One with other content is a failure, and stays as it is.
# - One archive holds one cluster. ARCHIVE_DIR/system_identifier names it: the decimal number that
#   pg_controldata prints. `pitr init-db` writes it; without it, the first segment does. WAL of another
#   cluster is refused; initdb and pg_upgrade make another cluster, which needs its own directory.
# - Every failure is one line on stderr and an exit status from 1 to 125, so PostgreSQL keeps the file
#   and tries again. Killed at any moment, this leaves at most a hidden .wal-archive.*.tmp, which
#   the next success for that file removes, and any success after an hour.
#
# Never does: overwrite, change or remove a file that is not such a temporary one; create ARCHIVE_DIR,
# because a volume that is not mounted must not be filled silently.
#
# Needs only what the Debian and Alpine images of PostgreSQL have (dash or busybox ash; od, dd, touch,
# ln, sync, rm, cmp, find), and a file system with hard links. A process costs between one and two
# milliseconds, and a segment some thirty: so some of them run side by side below.

set -u
umask 027
LC_ALL=C
export LC_ALL

newline='
'
temporary=
claim=

fail() {
    rm -f "$temporary" "$claim" 2>/dev/null
    printf 'wal-archive.sh: %s\n' "$1" >&2
    exit 1
}

# Why a tool failed, in one line: the first that it wrote (before it there may be the numbers of a
# header dump), or its status when it wrote nothing. Where access is missing, who asks and whose the
# archive is, by numbers: in a container they often have no names, or other names than outside.
reason() {
    text=${1#"${1%%[!0-9 $newline]*}"}
    first_line=${text%%"$newline"*}
    printf '%s' "${first_line:-it ended with status $2}"
    case $first_line in
        *[Pp]"ermission denied"*)
            set -- $(exec ls -ldn "$archive" 2>/dev/null)
            printf ' (this runs as uid %s, groups %s; %s is %s of uid %s, gid %s)' \
                "$(id -u)" "$(id -G)" "$archive" "${1-?}" "${3-?}" "${4-?}"
            ;;
    esac
}

# Sets unused to the name of a temporary file that nobody has. Processes in different containers that
# share the archive may have the same number: who creates the file, with set -C (noclobber), has it.
find_unused() {
    attempt=0
    unused=$archive/.wal-archive.$name.$$.tmp
    while [ -e "$unused" ]; do
        attempt=$((attempt + 1))
        unused=$archive/.wal-archive.$name.$$-$attempt.tmp
    done
}

# Every segment starts with a long page header: xlp_info at byte 2, xlp_sysid at 24 and xlp_seg_size at
# 32, in the byte order of this machine, which is od's too. Ends the (sub)shell that calls it.
dump_header() {
    exec od -An -v -tu2 -tu4 -tu8 -N40 "$1" 2>/dev/null
}

# Sets system_identifier and segment_size from such a dump, which has 8 short, 4 int and 2 long numbers
# for every 16 bytes. Dd's report of six words may stand behind it.
read_header() {
    set -- $1
    case $#${36-} in 35 | 41*+*) ;; *) return 1 ;; esac
    [ $(($2 & 2)) -ne 0 ] || return 1 # 2 is XLP_LONG_HEADER
    system_identifier=${28}
    segment_size=${33}
}

# A file without page header belongs to the cluster that runs us, which PostgreSQL does in its data
# directory and with a relative path; pg_control starts with the identifier. By hand it is not known.
read_control_file() {
    case $1 in pg_wal/*) ;; *) return ;; esac
    set -- $(exec od -An -v -tu8 -N8 global/pg_control 2>/dev/null)
    system_identifier=${1-}
}

# Makes the identity of an archive that has none. Linking fails if another process was faster: then its
# word counts, and the caller's comparison decides.
claim_archive() {
    mine=$system_identifier
    for held in "$archive"/$hex8$hex8$hex8; do
        [ -f "$held" ] || break
        read_header "$(dump_header "$held")" && [ "$system_identifier" = "$mine" ] ||
            fail "refused $name: $identity is missing, and $held is not known to come from the same cluster ($mine); write the system identifier of the cluster that owns this archive into $identity"
        break
    done
    system_identifier=$mine
    find_unused
    claim=$unused
    trouble=$(
        exec 2>&1
        set -C
        printf '%s\n' "$mine" >"$claim" && sync "$claim"
    ) || fail "cannot write to $archive: $(reason "$trouble" $?); make room or fix access there, PostgreSQL will try again"
    if trouble=$(exec ln "$claim" "$identity" 2>&1); then
        printf 'wal-archive.sh: %s is now the archive of the cluster with system identifier %s\n' "$archive" "$mine" >&2
    elif [ ! -e "$identity" ]; then
        fail "cannot put $identity in place: $(reason "$trouble" 1); $no_link_advice"
    fi
    rm -f "$claim"
    claim=
}

# Once a file is in place, what other tries for it have left is rubbish, even if one still runs: it will
# find the file and compare. Temporary files for other names are only known to be dead when they are old.
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
final=$archive/$name
identity=$archive/system_identifier
no_link_advice="$archive must be writable, with room for a name, and on a file system with hard links"

hex4='[0-9A-F][0-9A-F][0-9A-F][0-9A-F]'
hex8=$hex4$hex4
case $name in
    $hex8$hex8$hex8 | $hex8$hex8$hex8.partial) is_segment=yes ;;
    $hex8.history | $hex8$hex8$hex8.$hex8.backup) is_segment=no ;;
    *) fail "refused '$name': not the name of a WAL, history, backup or partial file; archive_command must pass \"%p\" \"%f\"" ;;
esac
case $archive in
    /*) ;;
    *) fail "refused $name: '$archive' is no full path, it would lie in the server's own data directory; give the full path" ;;
esac
case $source in -*) source=./$source ;; esac
[ -d "$archive" ] || fail "refused $name: no directory $archive; mount its volume, or make it once with mkdir"
[ -f "$source" ] || fail "cannot archive $name: no file $source; run this in the data directory, or give the full path"

if [ -e "$final" ]; then
    said=$([ $is_segment = no ] || dump_header "$source")
else
    find_unused
    temporary=$unused
    said=$(
        [ $is_segment = no ] || dump_header "$source" &
        report=$(
            exec 2>&1
            set -C
            exec dd if="$source" bs=262144 conv=fsync status=noxfer >"$temporary"
        )
        status=$?
        wait # or else it is left to process 1, which in a container is PostgreSQL
        printf '%s\n' "$report"
        exit $status
    ) || fail "cannot copy $source into $archive: $(reason "$said" $?); make room or fix access there, PostgreSQL will try again"
fi

system_identifier=
if [ $is_segment = yes ]; then
    read_header "$said" ||
        fail "refused $name: $source does not start with the long page header of a WAL segment; it is damaged or no WAL, look at it with pg_waldump"
    if [ -n "$temporary" ]; then
        # Dd has counted its blocks, which costs nothing; segments are a whole number of them.
        case $said in
            *"$newline$((segment_size / 262144))+0 records in"*) ;;
            *) fail "refused $name: $source is not $segment_size bytes long, as its header says; it is damaged, look at it with pg_waldump" ;;
        esac
    fi
else
    read_control_file "$source"
fi
if [ -n "$system_identifier" ]; then
    [ -e "$identity" ] || claim_archive
    owner=
    { read -r owner <"$identity"; } 2>/dev/null
    [ "$system_identifier" = "$owner" ] ||
        fail "refused $name: it comes from the cluster with system identifier $system_identifier, but $identity says '$owner'; give this server an archive directory of its own"
fi

is_new=no
if [ -n "$temporary" ]; then
    said=$(exec touch -c -r "$source" "$temporary" 2>&1) ||
        fail "cannot set the time of $temporary: $(reason "$said" $?); fix access there, PostgreSQL will try again"
    # Not mv: only a link is made in one step AND never over a file of that name.
    if said=$(exec ln "$temporary" "$final" 2>&1); then
        is_new=yes
    elif [ ! -e "$final" ]; then
        fail "cannot put $name in place: $(reason "$said" 1); $no_link_advice"
    fi
fi

if [ $is_new = no ]; then
    cmp -s "$source" "$final"
    case $? in
        0) ;;
        1) fail "refused $name: $final exists with other content and was left as it is; find out which server wrote it (do two share this archive?), and move it away only if nobody needs it" ;;
        *) fail "cannot compare $source with $final, which exists; make both readable, PostgreSQL will try again" ;;
    esac
fi

# Also for a file that was there before: its maker may have died before this line. The sweep may be lost
# in a crash, and may have a large directory to read, so it runs while this waits for the disk.
sweep 2>/dev/null &
said=$(exec sync "$final" "$archive" 2>&1) ||
    fail "cannot sync $final: $(reason "$said" $?); the disk below $archive fails, PostgreSQL will try again"
wait
exit 0
