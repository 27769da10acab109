#!/usr/bin/env bash
# Ask an actor with nothing but bash: the NATS protocol by hand over /dev/tcp.
#
#   ask.sh [--tell | --stream] [--timeout SECONDS] [--key KEY] <type/key> <Message> '<json>'
#
# Prints the answer as JSON; with --stream its parts first, one a line; with --tell the sequence of the stored mail.
# Environment: NATS_HOST (127.0.0.1), NATS_PORT (4222), NATS_USER, NATS_PASSWORD. No TLS.
# Exit: 0 answered, or stored; 1 the actor answered with an error; 2 usage; 3 no server, or access denied;
#       4 refused, nothing was stored; 5 no worker hosts the actor's type; 6 no answer in time.
set -u
export LC_ALL=C # every length below counts bytes
trap '' PIPE

die() { local code=$1; shift; printf 'ask.sh: %s\n' "$*" >&2; exit "$code"; }
usage() { die 2 "usage: ask.sh [--tell | --stream] [--timeout SECONDS] [--key KEY] <type/key> <Message> '<json>'"; }

# ---- arguments

mode=ask timeout=30 key=
while [[ ${1-} == --* ]]; do
  case $1 in
    --tell | --stream) mode=${1#--}; shift ;;
    --timeout) [[ ${2-} =~ ^[0-9]{1,6}$ ]] || usage; timeout=$2; shift 2 ;;
    --key) key=${2-}; shift 2 || usage ;;
    *) usage ;;
  esac
done
(($# == 3)) || usage
type=${1%%/*} actor=${1#*/} message=$2 body=$3
[[ $1 == */* && $type =~ ^[a-z0-9_-]{1,64}$ && -n $actor && ${#actor} -le 256 ]] ||
  die 2 "an address is <type>/<key>, the type of a-z 0-9 _ -, the key of up to 256 bytes"
[[ $key$message != *[[:cntrl:]]* ]] || die 2 "key and message name stand in headers: one line, please"

# ---- the connection: file descriptor 3

host=${NATS_HOST:-127.0.0.1} port=${NATS_PORT:-4222}
{ exec 3<>"/dev/tcp/$host/$port"; } 2>/dev/null || die 3 "no server on $host:$port; start one, or set NATS_HOST and NATS_PORT"

# An actor's key as one token of a subject.
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
[[ $info =~ \"max_payload\":\ *([0-9]+) ]] && ((${#body} > BASH_REMATCH[1])) && die 2 "the message has ${#body} bytes, the server takes ${BASH_REMATCH[1]}"

login=
[[ -n ${NATS_USER-} ]] && login=",\"user\":$(json_string "$NATS_USER"),\"pass\":$(json_string "${NATS_PASSWORD-}")"
inbox=_INBOX.ask.$$.$RANDOM$RANDOM
send "CONNECT {\"verbose\":false,\"pedantic\":false,\"headers\":true,\"no_responders\":true,\"lang\":\"bash\",\"version\":\"1\"$login}" \
  "SUB $inbox 1" PING
want=pong
receive 5 || die 3 "$host:$port does not answer"
want=

# ---- say it

where=$type.$(escape "$actor")
headers="Cb-Type: $message"$'\r\n'
[[ -n $key ]] && headers+="Cb-Mail-Id: $key"$'\r\n'

if [[ $mode == tell ]]; then
  # The broker looks for repeats in the whole stream, so the message id holds the address too.
  [[ -n $key ]] && headers+="Nats-Msg-Id: $type/$(escape "$actor")/$key"$'\r\n'
  publish "cb.mail.$where" "$headers" "$body"
  receive 5 || die 6 "no confirmation: the mail may be stored or not; tell again under the same --key"
  [[ $head =~ ^NATS/1\.0\ +503 ]] && die 4 "nothing takes mail: the streams are missing, run 'callboard provision'"
  [[ $data =~ \"seq\":\ *([0-9]+) && $data != *'"error"'* ]] || die 4 "refused: $data"
  printf '%s\n' "${BASH_REMATCH[1]}"
  exit 0
fi

[[ $mode == stream ]] && headers+=$'Cb-Stream: 1\r\n'
# The deadline travels: what nobody waits for any more is not begun.
headers+="Cb-Deadline: $(TZ=UTC printf '%(%Y-%m-%dT%H:%M:%SZ)T' "$(($(date +%s) + timeout))")"$'\r\n'

publish "cb.ask.$where" "$headers" "$body"
give_up=$((SECONDS + timeout)) silence=5 next=0
while :; do
  left=$((give_up - SECONDS))
  ((left > 0)) || die 6 "$type/$actor has not answered within $timeout s; it may still handle the question"
  if ! receive $((silence < left ? silence : left)); then
    # A host that took the question and died leaves silence. Only a named question may be asked again.
    [[ -n $key ]] && publish "cb.ask.$where" "$headers" "$body"
    silence=$((silence * 2))
    continue
  fi
  [[ $head =~ ^NATS/1\.0\ +503 ]] && die 5 "no worker hosts $type: start one with 'callboard worker start FILE'"
  if [[ $head =~ Cb-Part:\ *([0-9]+) ]]; then
    part=${BASH_REMATCH[1]}
    # After a takeover the parts come again from the beginning.
    ((part < next)) && continue
    ((part > next)) && printf 'ask.sh: parts %d to %d were lost on their way\n' "$next" "$((part - 1))" >&2
    next=$((part + 1))
    printf '%s\n' "$data"
    continue
  fi
  break
done
if [[ $head =~ Cb-Error:\ *([^$'\r']*) ]]; then
  die 1 "$type/$actor answered with an error: $data"
fi
printf '%s\n' "$data"
