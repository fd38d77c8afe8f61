#!/bin/sh
# A runtime for ordinary containers that runs none: it writes down in the directory $RECORD how it was called.
printf '%s\0' "$@" >"$RECORD/arguments"
printf '%s' "$$" >"$RECORD/pid"
env -0 >"$RECORD/environment"
grep SigIgn /proc/self/status >"$RECORD/ignored"
readlink /proc/$$/fd/5 >"$RECORD/descriptor5"
exit 7
