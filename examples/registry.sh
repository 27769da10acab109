#!/usr/bin/env bash
# Ask the registry who can do something, with nothing but bash: the NATS protocol by hand over /dev/tcp.
#
#   registry.sh find|list|pick '<json>'      the query, docs/wire.md section 9; prints the answer as JSON
#   registry.sh address '<json>'             picks, and prints the address alone: ask.sh "$(registry.sh address ...)" ...
#   registry.sh register|deregister|beat '<json>'
#
# Environment: NATS_HOST (127.0.0.1), NATS_PORT (4222), NATS_USER, NATS_PASSWORD. No TLS.
# Exit: 0 answered; 1 the registry answered with an error (nobody fits, for one); 2 usage; 3 no server, or access denied;
#       4 the server refused; 5 nobody leads the registry; 6 no answer in time.
set -u
export LC_ALL=C # every length below counts bytes
trap '' PIPE

die() { local code=$1; shift; printf 'registry.sh: %s\n' "$*" >&2; exit "$code"; }

case ${1-} in
  find | list | pick | register | deregister | beat) word=$1 ;;
  address) word=pick ;;
  *) die 2 "usage: registry.sh find|list|pick|address|register|deregister|beat '<json>'" ;;
esac
body=${2-'{}'}

# ---- the connection: file descriptor 3

host=${NATS_HOST:-127.0.0.1} port=${NATS_PORT:-4222}
{ exec 3<>"/dev/tcp/$host/$port"; } 2>/dev/null || die 3 "no server on $host:$port; start one, or set NATS_HOST and NATS_PORT"

# JSON text of a password.
json_string() {
  local text=${1//\\/\\\\}
  printf '"%s"' "${text//\"/\\\"}"
}

send() { printf '%s\r\n' "$@" >&3 2>/dev/null || die 3 "the server closed the connection"; }

# publish <subject> <header lines, each with its line end> <body>: with our inbox as reply subject.
publish() {
  local head=$'NATS/1.0\r\n'"$2"$'\r\n'
  send "HPUB $1 $inbox ${#head} $((${#head} + ${#3}))" "$head$3"
}

# Read until a message comes for us: sets $head (its headers) and $data. Returns 1 after $1 seconds without one.
receive() {
  local deadline=$((SECONDS + $1)) line words size
  while :; do
    ((SECONDS < deadline)) || return 1
    IFS= read -r -t 1 -u 3 line
    case $? in
      0) ;;
      1) die 3 "the server closed the connection" ;;
      *) continue ;;
    esac
    line=${line%$'\r'}
    case $line in
      PING) send PONG ;;
      PONG) [[ ${want-} == pong ]] && return 0 ;;
      -ERR*Authorization* | -ERR*Authentication*) die 3 "the server wants other credentials: set NATS_USER and NATS_PASSWORD" ;;
      -ERR*Permissions*) die 3 "${line#-ERR }: this user may not do that" ;;
      -ERR*) die 4 "the server says ${line#-ERR }" ;;
      MSG* | HMSG*)
        read -ra words <<<"$line" # MSG <subject> <sid> [reply] <bytes>; HMSG ... <header bytes> <all bytes>
        size=${words[-1]} head=
        IFS= read -r -N "$((size + 2))" -t 5 -u 3 data || die 3 "the connection broke inside a message"
        data=${data%$'\r\n'}
        [[ $line == HMSG* ]] && head=${data:0:${words[-2]}} data=${data:${words[-2]}}
        return 0
        ;;
    esac
  done
}

IFS= read -r -t 5 -u 3 info && [[ $info == INFO* ]] || die 3 "$host:$port does not speak NATS"
[[ $info =~ \"tls_required\":\ *true ]] && die 3 "this server wants TLS, which bash cannot speak"
[[ $info =~ \"max_payload\":\ *([0-9]+) ]] && ((${#body} > BASH_REMATCH[1])) && die 2 "the query has ${#body} bytes, the server takes ${BASH_REMATCH[1]}"

login=
[[ -n ${NATS_USER-} ]] && login=",\"user\":$(json_string "$NATS_USER"),\"pass\":$(json_string "${NATS_PASSWORD-}")"
inbox=_INBOX.registry.$$.$RANDOM$RANDOM
send "CONNECT {\"verbose\":false,\"pedantic\":false,\"headers\":true,\"no_responders\":true,\"lang\":\"bash\",\"version\":\"1\"$login}" \
  "SUB $inbox 1" PING
want=pong
receive 5 || die 3 "$host:$port does not answer"
want=

# ---- ask it

publish "cb.registry.$word" '' "$body"
receive 5 || die 6 "the registry does not answer"
[[ $head =~ ^NATS/1\.0\ +503 ]] && die 5 "nobody leads the registry: start a worker"
if [[ $head == *Cb-Error:* ]]; then
  printf '%s\n' "$data" >&2
  exit 1
fi
if [[ $1 != address ]]; then
  printf '%s\n' "$data"
elif [[ $data =~ \"type\":\"([a-z0-9_-]+)\",\"key\":\"([^\"\\]+)\" ]]; then
  printf '%s/%s\n' "${BASH_REMATCH[1]}" "${BASH_REMATCH[2]}"
else
  # a pool, or a key that JSON escapes
  printf '%s\n' "$data" >&2
  exit 1
fi
