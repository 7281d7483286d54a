# What the benchmarks in bash share; each sources it once it has read its options. Not a program.
#
# Sets `root` (the workspace), `target` (its release build) and `work`, a temporary folder that goes at the end unless
# `keep` is set. Ends what is in `servers`, process ids, however the benchmark ends.
# shellcheck shell=bash disable=SC2034
set -euo pipefail
export LC_ALL=C

root=$(dirname "$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)")
target=${CARGO_TARGET_DIR:-$root/target}/release
work=$(mktemp -d "${TMPDIR:-/var/tmp}/pulp-bench.XXXXXX")
servers=()

finish() {
    local code=$? log
    stop_servers
    at_end
    wait
    if ((code != 0)); then
        for log in "$work/log" "$work"/*.log; do
            [[ ! -s $log ]] || { echo "--- ${log##*/}" && tail -n 20 "$log"; } >&2
        done
    fi
    if [[ ${keep-} ]]; then echo "kept: $work"; else rm -rf "$work"; fi
}
trap finish EXIT
trap 'exit 130' INT TERM

# What a benchmark has to end besides its servers; it may have its own.
at_end() { :; }

stop_servers() {
    ((${#servers[@]} == 0)) && return
    kill "${servers[@]}" 2>/dev/null || true
    wait "${servers[@]}" 2>/dev/null || true
    servers=()
}

# Installs, if it may, what is missing. Debian keeps servers' programs where users don't look.
need_programs() { # program, or program:package …
    local each missing=()
    for each; do
        [[ -x $(command -v "${each%:*}" || echo "/usr/sbin/${each%:*}") ]] || missing+=("${each#*:}")
    done
    ((${#missing[@]} == 0)) || apt-get install -y --no-install-recommends "${missing[@]}"
}

# Makes the release build of programs that are not there yet.
need_builds() { # program:package …
    local each packages=()
    for each; do
        [[ -x $target/${each%:*} ]] || packages+=(-p "${each#*:}")
    done
    ((${#packages[@]} == 0)) || cargo build --manifest-path "$root/Cargo.toml" --release "${packages[@]}"
}

free_port() {
    local port
    while port=$((20000 + RANDOM % 10000)); do
        (exec 3<>"/dev/tcp/127.0.0.1/$port") 2>/dev/null || { echo "$port" && return; }
    done
}

wait_for() { # url
    curl --silent --insecure --output /dev/null --retry 100 --retry-delay 0 --retry-max-time 30 --retry-connrefused "$1"
}

wait_for_port() { # port
    for _ in {1..300}; do
        (exec 3<>"/dev/tcp/127.0.0.1/$1") 2>/dev/null && return
        sleep 0.1
    done
    echo "nothing listens on $1" >&2 && return 1
}

# The machine, and how busy it is.
machine() {
    echo "$(nproc) cores, $(sed -n 's/^model name\s*: //p' /proc/cpuinfo | head -1); load $(cut -d' ' -f1-3 /proc/loadavg)"
}

# MB that a process has held at most so far.
peak_of() { # process id
    awk '/^VmHWM/ { print $2 * 1024 / 1e6 }' "/proc/$1/status"
}

# Seconds that the last task of a type ran, by its row in a standalone server's database.
task_seconds() { # data directory, part of the type's name
    sqlite3 -readonly "$1/pulp.db" "select (finished - started) / 1e6 from tasks
        where task_type like '%$2%' and state = 'finished' order by finished desc limit 1"
}
