#!/bin/sh
# SPDX-License-Identifier: GPL-2.0-or-later
# A script of several processes, one after another, side by side, in a pipe, in a substitution and in a
# subshell; each that is large is larger than the limit of the test.
#
#     several.sh PYTHON PROGRAMS ENTRIES
set -eu
python=$1 programs=$2 entries=$3

echo "first $("$python" "$programs/walk_dict.py" "$entries")"
"$python" "$programs/walk_dict.py" "$((entries / 3))" >"$TMPDIR/left" &
"$python" "$programs/walk_dict.py" "$((entries / 3 + 1))" >"$TMPDIR/right" &
wait
cat "$TMPDIR/left" "$TMPDIR/right"
(
	"$python" "$programs/numpy_jobs.py" cumsum 96 | tr a-f A-F
	exit 3
) || echo "status $?"
rm "$TMPDIR/left" "$TMPDIR/right"
seq "$((entries * 2))" | sort -R --random-source=/bin/sh -S 100M | sha256sum
