# Runs one throwaway PostgreSQL for as long as the test process lives. Read by postgres.rs.
#
#   sh -c "$(cat postgres.sh)" postgres FOLDER PROGRAMS PORT...
#
# FOLDER is this run's own and holds `password`; PROGRAMS has initdb, postgres and pg_ctl; the first
# PORT that is free is used. Prints `ready PORT`, or `failed` and why. Standard input is a pipe whose
# other end only the test process holds: it reads as closed when that process has ended, by whatever
# signal. Then the server is stopped by its own pid file and the folder is removed. Lines of postgresql.conf in
# KEYSTEAD_POSTGRES_SETTINGS win over those below. Where KEYSTEAD_POSTGRES_COPY holds commands, they fill the data folder,
# STANDBY_DATA to them, in place of initdb: the server is then a copy of another one, with its settings.

folder=$1 programs=$2
shift 2
data="$folder/data"
log="$folder/postgres.log"
trap '' HUP INT

end() {
    "$programs/pg_ctl" stop -D "$data" -m immediate -s -w >/dev/null 2>&1
    rm -rf "$folder"
    exit 0
}
fail() {
    echo "failed: $1"
    tail -n 20 "$log" 2>/dev/null
    exec >/dev/null
    end
}

copied=${KEYSTEAD_POSTGRES_COPY:-}
if [ -n "$copied" ]; then
    PATH="$programs:$PATH" STANDBY_DATA="$data" sh -eu -c "$copied" >"$log" 2>&1 </dev/null || fail "the copy"
else
    "$programs/initdb" -D "$data" -U postgres --pwfile="$folder/password" --auth=scram-sha-256 \
        --encoding=UTF8 --locale=C --no-sync >"$log" 2>&1 </dev/null || fail "initdb"
fi

# fsync stays on: the tests that kill a server promise that nothing acknowledged is lost.
[ -n "$copied" ] || cat >>"$data/postgresql.conf" <<SETTINGS
listen_addresses = '127.0.0.1'
unix_socket_directories = ''
max_connections = 300
shared_buffers = 32MB
min_wal_size = 32MB
max_wal_size = 96MB
fsync = on
synchronous_commit = on
full_page_writes = on
autovacuum_naptime = 1min
log_min_messages = warning
${KEYSTEAD_POSTGRES_SETTINGS:-}
SETTINGS

for port in "$@"; do
    if "$programs/pg_ctl" start -D "$data" -l "$log" -s -w -t 60 -o "-p $port" >/dev/null 2>&1 </dev/null
    then
        echo "ready $port"
        exec >/dev/null
        cat >/dev/null
        end
    fi
done
fail "start"
