#!/bin/sh
# The nightly export for cron: one run, repeated if that can help, with a log for each night. cron mails the output, so
# it prints only messages that need attention, and nothing after a complete run. It exits with the code of the last run.
#
# Install: crontab -e as the user that owns the data, with
#
#   MAILTO=data@example.com
#   15 2 * * * /srv/etl/configs/deploy/etl-nightly.sh
#
# The settings below can be overridden in the environment.

set -u

home=${ETL_HOME:-/srv/etl}                              # the folder with .venv and configs; paths are relative to it
config=${ETL_CONFIG:-configs/eleapi.toml}
token=${ETL_TOKEN_FILE:-/etc/etl/eleapi.token}          # mode 0600; not used if the configuration has token_file
logs=${ETL_LOGS:-log}
keep_days=${ETL_KEEP_DAYS:-30}                          # older logs are deleted
attempts=${ETL_ATTEMPTS:-4}
pause=${ETL_PAUSE:-600}                                 # seconds before the next attempt

umask 077
cd "$home" || exit 2
mkdir -p "$logs" || exit 20

# Two scripts at once would mix their logs. The lock is released when the script ends, for any reason.
exec 9>"$logs/nightly.lock" || exit 20
flock --nonblock 9 || exit 30

if [ -r "$token" ]; then
    ELEAPI_TOKEN=$(cat "$token")
    export ELEAPI_TOKEN
fi

log=$logs/$(date -u +%Y%m%dT%H%M%SZ).log
summary=$logs/last-run.txt

attempt=1
while :; do
    # Children do not inherit the lock: a program that outlives the script must not hold it.
    .venv/bin/etl run "$config" >"$summary" 2>>"$log" 9>&-
    code=$?
    case $code in
        11 | 13 | 20 | 21) [ "$attempt" -lt "$attempts" ] || break ;;
        *) break ;;
    esac
    attempt=$((attempt + 1))
    sleep "$pause" 9>&-
done
find "$logs" -name '*T*Z.log' -mtime "+$keep_days" -delete

case $code in
    0) ;;
    30) ;; # another run holds the lock, and nothing was done
    40)
        echo "etl: published; some contacts could not be kept and are in the table rejects"
        cat "$summary"
        ;;
    2 | 10 | 12 | 14 | 22 | 70)
        echo "etl: not published (exit code $code); do what the message says, running again does not help"
        tail -n 5 "$log"
        ;;
    *)
        echo "etl: not published (exit code $code, attempt $attempt); the next run resumes or starts again"
        tail -n 5 "$log"
        ;;
esac
cat "$summary" >>"$log"
exit "$code"
