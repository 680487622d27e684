# Runs one throwaway MariaDB for no longer than the test process lives. Read by mariadb.rs.
#
#   sh -c "$(cat mariadb.sh)" mariadb FOLDER SERVER INSTALLER PORT
#
# FOLDER is this run's own and holds `password`, that of the only account, `root`, which comes from 127.0.0.1 alone.
# This process becomes SERVER, so that its id is the server's. Standard input is a pipe whose other end only the test
# process holds: it reads as closed when that process has ended, by whatever signal, or has let go of it. Then a
# watchdog kills the server and removes the folder.

folder=$1 server=$2 installer=$3 port=$4
data="$folder/data"
log="$folder/mariadb.log"
trap '' HUP INT
# What runs in the background has no standard input of its own accord.
exec 3<&0
{
    cat <&3 >/dev/null
    kill -KILL "$$"
    rm -rf "$folder"
    # What the server wrote while it was removed.
    rm -rf "$folder"
} 2>/dev/null &

"$installer" --no-defaults --datadir="$data" --auth-root-authentication-method=normal --skip-test-db \
    --skip-name-resolve >"$log" 2>&1 3<&- </dev/null || exit 1

# Accounts that an installation makes differ between versions: none of them stays, anonymous ones neither.
umask 077
cat >"$folder/accounts.sql" <<ACCOUNTS
DELETE FROM mysql.global_priv WHERE User <> 'mariadb.sys';
FLUSH PRIVILEGES;
CREATE USER 'root'@'127.0.0.1' IDENTIFIED BY '$(cat "$folder/password")';
GRANT ALL PRIVILEGES ON *.* TO 'root'@'127.0.0.1' WITH GRANT OPTION;
ACCOUNTS

# Nothing here outlives the tests, so nothing need be safe from a crash.
exec "$server" --no-defaults --datadir="$data" --bind-address=127.0.0.1 --port="$port" --socket=socket \
    --pid-file=pid --init-file="$folder/accounts.sql" --skip-name-resolve --skip-log-bin \
    --character-set-server=utf8mb4 --max-allowed-packet=64M --max-connections=200 --performance-schema=OFF \
    --innodb-buffer-pool-size=32M --innodb-flush-log-at-trx-commit=0 --innodb-doublewrite=0 \
    3<&- </dev/null >>"$log" 2>&1
