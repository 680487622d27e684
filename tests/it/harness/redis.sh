# Runs one throwaway Redis for no longer than the test process lives. Read by redis.rs.
#
#   sh -c "$(cat redis.sh)" redis FOLDER PROGRAM ARGUMENT...
#
# FOLDER is this run's own and gets `redis.log`. This process becomes PROGRAM, so that its id is the server's. Standard
# input is a pipe whose other end only the test process holds: it reads as closed when that process has ended, by
# whatever signal, or has let go of it. Then a watchdog kills the server, halted or not, and removes the folder; it
# keeps standard output open until it has. Nobody else can have the server's id by then: the test process waits for the
# server only after the watchdog.

folder=$1
shift
trap '' HUP INT
# What runs in the background has no standard input of its own accord.
exec 3<&0
{
    cat <&3 >/dev/null
    kill -KILL "$$"
    rm -rf "$folder"
} 2>/dev/null &
exec "$@" 3<&- </dev/null >"$folder/redis.log" 2>&1
