#!/usr/bin/env bash
# Give Callboard a task with nothing but bash: the NATS protocol by hand over /dev/tcp.
#
#   publish.sh [--wait SECONDS] <capability> '<json>' [id]
#
# Prints the task's id, and with --wait its ledger record on a second line. Everything else goes to stderr.
# Environment: NATS_HOST (127.0.0.1), NATS_PORT (4222), NATS_USER, NATS_PASSWORD. No TLS.
# Exit: 0 stored (with --wait: completed); 1 the task ended otherwise; 2 usage; 3 no server, or access denied;
#       4 refused, nothing was stored; 5 no confirmation, outcome unknown; 6 no result in time.
set -u
export LC_ALL=C # every length below counts bytes
trap '' PIPE

die() { local code=$1; shift; printf 'publish.sh: %s\n' "$*" >&2; exit "$code"; }
usage() { die 2 "usage: publish.sh [--wait SECONDS] <capability> '<json>' [id]"; }

# ---- arguments

wait_s=
if [[ ${1-} == --wait ]]; then
  [[ ${2-} =~ ^[0-9]{1,6}$ ]] || usage
  wait_s=$2
  shift 2
fi
(($# == 2 || $# == 3)) || usage
capability=$1 body=$2 id=${3-}
[[ $capability =~ ^[a-z0-9_-]{1,64}$ ]] || die 2 "a capability takes 1 to 64 of a-z 0-9 _ -"
[[ $id != *[[:cntrl:]]* && $id != [' ~']* && $id != *' ' && ${#id} -le 256 ]] ||
  die 2 "an id is up to 256 bytes on one line, without a space at either end, and does not begin with '~'"

# ---- the connection: file descriptor 3

host=${NATS_HOST:-127.0.0.1} port=${NATS_PORT:-4222}
{ exec 3<>"/dev/tcp/$host/$port"; } 2>/dev/null || die 3 "no server on $host:$port; start one, or set NATS_HOST and NATS_PORT"

# JSON text of a string; passwords hold quotes and backslashes too.
json_string() {
  local text=$1 out='' char code i
  for ((i = 0; i < ${#text}; i++)); do
    char=${text:i:1}
    case $char in
      '"' | \\) out+=\\$char ;;
      [[:cntrl:]]) printf -v code '\\u%04x' "'$char"; out+=$code ;;
      *) out+=$char ;;
    esac
  done
  printf '"%s"' "$out"
}

# A task id as one token of a subject.
escape() {
  local text=$1 out='' char code i
  for ((i = 0; i < ${#text}; i++)); do
    char=${text:i:1}
    case $char in
      [A-Za-z0-9_~\!\'\(\)-]) out+=$char ;;
      *) printf -v code '%d' "'$char"; printf -v code '%%%02X' "$((code & 255))"; out+=$code ;;
    esac
  done
  printf '%s' "$out"
}

send() { printf '%s\r\n' "$@" >&3 2>/dev/null || die "${lost:-3}" "the server closed the connection"; }

# Read until a message comes for us: sets $status (empty, or as 404) and $data. Returns 1 after $1 seconds without one.
receive() {
  local deadline=$((SECONDS + $1)) line words size head
  while :; do
    ((SECONDS < deadline)) || return 1
    IFS= read -r -t 1 -u 3 line
    case $? in
      0) ;;
      1) die "${lost:-3}" "the server closed the connection" ;;
      *) continue ;;
    esac
    line=${line%$'\r'}
    case $line in
      PING) send PONG ;;
      PONG) ((${1:-0} > 0)) && [[ ${want-} == pong ]] && return 0 ;;
      +OK | INFO*) ;;
      -ERR*Authorization* | -ERR*Authentication*) die 3 "the server wants other credentials: set NATS_USER and NATS_PASSWORD" ;;
      -ERR*Permissions*) die 3 "${line#-ERR }: this user may not do that" ;;
      -ERR*) die "${lost:-4}" "the server says ${line#-ERR }" ;;
      MSG* | HMSG*)
        read -ra words <<<"$line" # MSG <subject> <sid> [reply] <bytes>; HMSG ... <header bytes> <all bytes>
        size=${words[-1]}
        IFS= read -r -N "$((size + 2))" -t 5 -u 3 data || die "${lost:-3}" "the connection broke inside a message"
        data=${data%$'\r\n'} status=
        if [[ $line == HMSG* ]]; then
          head=${data:0:${words[-2]}} data=${data:${words[-2]}}
          # A status stands in the first line of the header: "NATS/1.0 404 Message Not Found"
          [[ $head =~ ^NATS/1\.0\ +([0-9]{3}) ]] && status=${BASH_REMATCH[1]}
        fi
        return 0
        ;;
    esac
  done
}

IFS= read -r -t 5 -u 3 info && [[ $info == INFO* ]] || die 3 "$host:$port does not speak NATS"
[[ $info =~ \"tls_required\":\ *true ]] && die 3 "this server wants TLS, which bash cannot speak"
[[ $info =~ \"max_payload\":\ *([0-9]+) ]] && ((${#body} > BASH_REMATCH[1])) && die 2 "the payload has ${#body} bytes, the server takes ${BASH_REMATCH[1]}"
[[ $info =~ \"auth_required\":\ *true && -z ${NATS_USER-} ]] && die 3 "this server wants credentials: set NATS_USER and NATS_PASSWORD"

login=
[[ -n ${NATS_USER-} ]] && login=",\"user\":$(json_string "$NATS_USER"),\"pass\":$(json_string "${NATS_PASSWORD-}")"
inbox=_INBOX.publish.$$.$RANDOM$RANDOM
send "CONNECT {\"verbose\":false,\"pedantic\":false,\"headers\":true,\"no_responders\":true,\"lang\":\"bash\",\"version\":\"1\"$login}" \
  "SUB $inbox.* 1" PING
want=pong
receive 5 || die 3 "$host:$port does not answer"
want=

# ---- submit: with a reply subject, so that the server confirms that the task is on disk

lost=5
for try in 1 2 3; do
  if [[ -z $id ]]; then
    send "PUB cb.task.$capability $inbox.ack ${#body}" "$body"
  else
    head=$'NATS/1.0\r\nNats-Msg-Id: '$id$'\r\n\r\n'
    send "HPUB cb.task.$capability $inbox.ack ${#head} $((${#head} + ${#body}))" "$head$body"
  fi
  receive 5 && break
  # Without an id a second try could be a second task.
  [[ -n $id && $try -lt 3 ]] || die 5 "no confirmation: the task may be stored or not${id:+; publish again under the same id}"
done

[[ $status == 503 ]] && die 4 "nothing takes cb.task.$capability: the streams are missing, run 'callboard provision'"
if [[ $data =~ \"err_code\":\ *([0-9]+) ]]; then
  code=${BASH_REMATCH[1]} text=
  [[ $data =~ \"description\":\ *\"([^\"]*)\" ]] && text=${BASH_REMATCH[1]}
  case $code in
    10077 | 10023 | 10047) die 4 "the queue is full ($text, $code): start more workers, or publish again later${id:+ under the same id}" ;;
    *) die 4 "refused: $text ($code)" ;;
  esac
fi
[[ $data =~ \"seq\":\ *([0-9]+) ]] || die 5 "this is no confirmation: $data"
[[ -n $id ]] || id="~${BASH_REMATCH[1]}"
[[ $data =~ \"duplicate\":\ *true ]] && printf 'publish.sh: this id was submitted before\n' >&2
printf '%s\n' "$id"
[[ -n $wait_s ]] || exit 0

# ---- wait: read the ledger until the record is there

lost=6
give_up=$((SECONDS + wait_s))
while :; do
  send "PUB \$JS.API.DIRECT.GET.CB_LEDGER.cb.result.$capability.$(escape "$id") $inbox.get 0" ''
  receive 5 || status=timeout
  case $status in
    '') break ;;
    404 | timeout) ;;
    503) die 6 "the ledger does not answer: is the stream CB_LEDGER there?" ;;
    *) die 6 "the ledger answers $status" ;;
  esac
  ((SECONDS < give_up)) || die 6 "no result after $wait_s s; the task is stored and will run"
  sleep 0.5
done
printf '%s\n' "$data"
# "status" stands before anything that the user wrote.
[[ $data =~ \"status\":\ *\"completed\" && ${data%%\"status\"*} == "${data%%\"status\":\"completed\"*}" ]] || exit 1
