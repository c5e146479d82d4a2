#!/usr/bin/env bash
# timed.sh PART COMMAND…: runs the command and appends its duration to the file $MOYIN_TIMES, if set.
# timed.sh: prints the total for each part in $MOYIN_TIMES, and the time from first start to last end.
set -uo pipefail

if [ $# -eq 0 ]; then
    awk -F'\t' '
        NR == 1 || $2 < first { first = $2 }
        $3 > last { last = $3 }
        !($1 in seconds) { order[++parts] = $1 }
        { seconds[$1] += $3 - $2 }
        $4 != 0 { failed[$1] = "  failed" }
        END {
            print "\nduration of each part (some ran in parallel)"
            for (i = 1; i <= parts; i++) row(order[i], seconds[order[i]], failed[order[i]])
            if (parts) row("total", last - first, "")
        }
        function row(name, s, note) {
            printf "  %-12s %3d min %02d s%s\n", name, s / 60, s % 60, note
        }
    ' "$MOYIN_TIMES"
    exit
fi

part=$1
shift
start=$(date +%s)
"$@"
status=$?
if [ -n "${MOYIN_TIMES:-}" ]; then
    printf '%s\t%s\t%s\t%s\n' "$part" "$start" "$(date +%s)" "$status" >> "$MOYIN_TIMES"
fi
exit "$status"
