/* What the broker alone allows: the NATS protocol by hand over plain sockets, no library, one thread.
 *
 *   ceiling ask     PORT SUBJECT COUNT                                 core request-reply, one at a time
 *   ceiling publish PORT SUBJECT COUNT IN_FLIGHT SIZE                  JetStream publishes, each acknowledged
 *   ceiling pull    PORT STREAM.CONSUMER COUNT IN_FLIGHT               take and ack a work queue
 *   ceiling work    PORT STREAM.CONSUMER COUNT IN_FLIGHT SIZE RECORD   take, store a record of SIZE bytes each, ack
 *   ceiling batch   PORT STREAM.CONSUMER COUNT IN_FLIGHT SIZE RECORD   the same, records in atomic batches
 *
 * It talks to 127.0.0.1 and prints {"count":n,"seconds":s,"p50_us":p}. RECORD is a subject that a number is put behind.
 * Anything unexpected ends it with status 1 and a line that says what it was.
 */
#define _POSIX_C_SOURCE 200809L
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

enum {
    BUFFER = 1 << 20,
    LINE = 4096,
    NAME = 512,
    MOST_IN_FLIGHT = 4096,
    MOST_IN_BATCH = 500,
    MOST_SIZE = 64 << 10,
    SILENCE_S = 60
};

/* One connection; what is written goes out before anything is waited for. */
typedef struct {
    int fd;
    size_t start, end, filled;
    char in[BUFFER];
    char out[BUFFER];
} Link;

/* One message as it came; the texts are cut off copies, the body lies in the link's buffer until the next one. */
typedef struct {
    char subject[NAME], reply[NAME];
    const char *body;
    size_t size;
} Message;

/* A task under way: where its ack goes. */
typedef struct {
    char ack[NAME];
} Slot;

static char filler[MOST_SIZE];

static _Noreturn void fail(const char *format, ...) {
    va_list arguments;
    va_start(arguments, format);
    (void)fprintf(stderr, "ceiling: ");
    (void)vfprintf(stderr, format, arguments);
    (void)fprintf(stderr, "\n");
    va_end(arguments);
    exit(1);
}

static double now_s(void) {
    struct timespec at;
    if (clock_gettime(CLOCK_MONOTONIC, &at) != 0) fail("no clock: %s", strerror(errno));
    return (double)at.tv_sec + (double)at.tv_nsec / 1e9;
}

static size_t number(const char *text, const char *what, size_t most) {
    char *end = NULL;
    errno = 0;
    unsigned long found = strtoul(text, &end, 10);
    if (errno != 0 || end == text || *end != '\0' || text[0] == '-' || found == 0 || found > most)
        fail("%s is a number from 1 to %zu, not %.40s", what, most, text);
    return (size_t)found;
}

static void flush(Link *link) {
    size_t sent = 0;
    while (sent < link->filled) {
        ssize_t wrote = send(link->fd, link->out + sent, link->filled - sent, MSG_NOSIGNAL);
        if (wrote < 0 && errno == EINTR) continue;
        if (wrote <= 0) fail("cannot send: %s", strerror(errno));
        sent += (size_t)wrote;
    }
    link->filled = 0;
}

static void put(Link *link, const char *data, size_t size) {
    if (size > BUFFER) fail("%zu bytes at once are too many", size);
    if (size > BUFFER - link->filled) flush(link);
    memcpy(link->out + link->filled, data, size);
    link->filled += size;
}

static void say(Link *link, const char *format, ...) {
    char text[LINE];
    va_list arguments;
    va_start(arguments, format);
    int size = vsnprintf(text, sizeof text, format, arguments);
    va_end(arguments);
    if (size < 0 || (size_t)size >= sizeof text) fail("a line is longer than %d bytes", LINE);
    put(link, text, (size_t)size);
}

/* Have more bytes in the buffer; what was sent to us last is no longer looked at. */
static void receive(Link *link) {
    if (link->start > 0) {
        memmove(link->in, link->in + link->start, link->end - link->start);
        link->end -= link->start;
        link->start = 0;
    }
    if (link->end == BUFFER) fail("a message is larger than %d bytes", BUFFER);
    flush(link);
    for (;;) {
        ssize_t got = recv(link->fd, link->in + link->end, BUFFER - link->end, 0);
        if (got < 0 && errno == EINTR) continue;
        if (got < 0 && (errno == EAGAIN || errno == EWOULDBLOCK)) fail("the server said nothing for %d s", SILENCE_S);
        if (got < 0) fail("cannot receive: %s", strerror(errno));
        if (got == 0) fail("the server closed the connection");
        link->end += (size_t)got;
        return;
    }
}

/* Take a line without its end; false when it is not all there. */
static bool take_line(Link *link, char *line) {
    const char *from = link->in + link->start;
    const char *at = memchr(from, '\n', link->end - link->start);
    if (at == NULL) {
        if (link->end - link->start >= LINE && strncmp(from, "INFO", 4) != 0) fail("a line has no end");
        return false;
    }
    size_t size = (size_t)(at - from);
    size_t kept = size < LINE ? size : LINE - 1;
    memcpy(line, from, kept);
    if (kept > 0 && line[kept - 1] == '\r') kept--;
    line[kept] = '\0';
    link->start += size + 1;
    return true;
}

static void copy(char *to, const char *from) {
    size_t size = strlen(from);
    if (size >= NAME) fail("a subject is longer than %d bytes", NAME - 1);
    memcpy(to, from, size + 1);
}

/* Read the line of a message: MSG subject sid [reply] size, HMSG subject sid [reply] headers size. */
static void read_head(char *line, Message *message, size_t *headers) {
    char *words[6] = {0};
    size_t count = 0;
    char *rest = NULL;
    for (char *word = strtok_r(line, " ", &rest); word != NULL; word = strtok_r(NULL, " ", &rest)) {
        if (count == 6) fail("a message has too many words");
        words[count++] = word;
    }
    bool has_headers = count > 0 && words[0][0] == 'H';
    size_t least = has_headers ? 5 : 4;
    if (count < least || count > least + 1) fail("a message of %zu words", count);
    copy(message->subject, words[1]);
    copy(message->reply, count > least ? words[3] : "");
    char *end = NULL;
    message->size = (size_t)strtoul(words[count - 1], &end, 10);
    if (*end != '\0' || message->size > BUFFER - 2) fail("a message of %.40s bytes", words[count - 1]);
    *headers = has_headers ? (size_t)strtoul(words[count - 2], &end, 10) : 0;
    if (*headers > message->size) fail("headers that are larger than their message");
}

/* Take the next message that has come; false when none is whole. */
static bool take(Link *link, Message *message) {
    char line[LINE];
    for (;;) {
        size_t before = link->start;
        if (!take_line(link, line)) return false;
        if (strncmp(line, "MSG ", 4) == 0 || strncmp(line, "HMSG ", 5) == 0) {
            size_t headers = 0;
            read_head(line, message, &headers);
            if (link->end - link->start < message->size + 2) {
                link->start = before;
                return false;
            }
            message->body = link->in + link->start;
            link->start += message->size + 2;
            return true;
        }
        if (strcmp(line, "PING") == 0) say(link, "PONG\r\n");
        else if (strncmp(line, "-ERR", 4) == 0) fail("the server says %.200s", line);
    }
}

static void next(Link *link, Message *message) {
    while (!take(link, message)) receive(link);
}

static Link *dial(size_t port) {
    Link *link = calloc(1, sizeof *link);
    if (link == NULL) fail("no memory");
    struct sockaddr_in at = {.sin_family = AF_INET, .sin_port = htons((uint16_t)port)};
    at.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    struct timeval silence = {.tv_sec = SILENCE_S};
    int one = 1;
    link->fd = socket(AF_INET, SOCK_STREAM, 0);
    if (link->fd < 0 || connect(link->fd, (struct sockaddr *)&at, sizeof at) != 0)
        fail("cannot reach port %zu: %s", port, strerror(errno));
    if (setsockopt(link->fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one) != 0 ||
        setsockopt(link->fd, SOL_SOCKET, SO_RCVTIMEO, &silence, sizeof silence) != 0)
        fail("cannot set up the socket: %s", strerror(errno));
    say(link, "CONNECT {\"verbose\":false,\"pedantic\":false,\"headers\":true,\"no_responders\":true}\r\nPING\r\n");
    char line[LINE];
    do {
        while (!take_line(link, line)) receive(link);
        if (strncmp(line, "-ERR", 4) == 0) fail("the server says %.200s", line);
    } while (strcmp(line, "PONG") != 0);
    return link;
}

static void send_body(Link *link, size_t size) {
    put(link, filler, size);
    put(link, "\r\n", 2);
}

/* What a store is answered with; a refusal ends us. */
static void check_stored(const Message *message) {
    char text[NAME];
    size_t size = message->size < sizeof text - 1 ? message->size : sizeof text - 1;
    memcpy(text, message->body, size);
    text[size] = '\0';
    if (strstr(text, "\"seq\"") == NULL || strstr(text, "\"error\"") != NULL) fail("not stored: %.300s", text);
}

static size_t index_of(const char *subject, size_t most) {
    const char *dot = strrchr(subject, '.');
    char *end = NULL;
    size_t found = dot == NULL ? most : (size_t)strtoul(dot + 1, &end, 10);
    if (found >= most) fail("an answer to nobody: %.100s", subject);
    return found;
}

static int by_size(const void *left, const void *right) {
    double a = *(const double *)left, b = *(const double *)right;
    return (a > b) - (a < b);
}

static double ask(size_t port, const char *subject, size_t count) {
    Link *asks = dial(port), *answers = dial(port);
    double *took = calloc(count, sizeof *took);
    if (took == NULL) fail("no memory");
    Message message;
    say(answers, "SUB %s 1\r\nPING\r\n", subject);
    receive(answers);
    say(asks, "SUB _CEILING.%d 1\r\n", (int)getpid());
    for (size_t n = 0; n < count; n++) {
        double began = now_s();
        say(asks, "PUB %s _CEILING.%d 256\r\n", subject, (int)getpid());
        send_body(asks, 256);
        flush(asks);
        next(answers, &message);
        say(answers, "PUB %s %zu\r\n", message.reply, message.size);
        put(answers, message.body, message.size);
        put(answers, "\r\n", 2);
        flush(answers);
        next(asks, &message);
        if (message.size != 256) fail("an answer of %zu bytes", message.size);
        took[n] = now_s() - began;
    }
    qsort(took, count, sizeof *took, by_size);
    double p50 = took[count / 2] * 1e6;
    free(took);
    free(asks);
    free(answers);
    return p50;
}

static void publish(size_t port, const char *subject, size_t count, size_t in_flight, size_t size) {
    Link *link = dial(port);
    Message message;
    say(link, "SUB _CEILING.%d 1\r\n", (int)getpid());
    for (size_t sent = 0, stored = 0; stored < count;) {
        while (sent < count && sent - stored < in_flight) {
            say(link, "PUB %s _CEILING.%d %zu\r\n", subject, (int)getpid(), size);
            send_body(link, size);
            sent++;
        }
        next(link, &message);
        do {
            check_stored(&message);
            stored++;
        } while (take(link, &message));
    }
    free(link);
}

/* A worker's way with a queue. */
typedef struct {
    Link *link;
    size_t count, in_flight, size;
    const char *record; /* NULL: none is stored */
    bool is_batched;
    Slot slots[MOST_IN_FLIGHT];
    size_t unused[MOST_IN_FLIGHT], free_slots;
    size_t waiting[MOST_IN_FLIGHT], waiting_count; /* for a batch */
    size_t sent[MOST_IN_BATCH], sent_count;        /* the batch under way */
    size_t taken, acked, owed, recorded, batches;
} Work;

static void ack(Work *work, const char *subject) {
    /* the last one is confirmed, and acks are taken in order */
    bool is_last = ++work->acked == work->count;
    if (is_last) say(work->link, "PUB %s _CEILING.%d.done 4\r\n+ACK\r\n", subject, (int)getpid());
    else say(work->link, "PUB %s 4\r\n+ACK\r\n", subject);
    work->owed++;
}

static void ack_slot(Work *work, size_t slot) {
    ack(work, work->slots[slot].ack);
    work->unused[work->free_slots++] = slot;
}

static void take_task(Work *work, const Message *message) {
    if (work->free_slots == 0) fail("more tasks than were asked for");
    size_t slot = work->unused[--work->free_slots];
    copy(work->slots[slot].ack, message->reply);
    work->taken++;
    if (work->record == NULL) {
        ack_slot(work, slot);
    } else if (work->is_batched) {
        work->waiting[work->waiting_count++] = slot;
    } else {
        int own = (int)getpid();
        say(work->link, "PUB %s.~%zu _CEILING.%d.stored.%zu %zu\r\n", work->record, ++work->recorded, own, slot,
            work->size);
        send_body(work->link, work->size);
    }
}

/* Send what waits as one batch, unless one is under way. */
static void send_batch(Work *work) {
    if (work->sent_count > 0 || work->waiting_count == 0) return;
    size_t size = work->waiting_count < MOST_IN_BATCH ? work->waiting_count : MOST_IN_BATCH;
    int own = (int)getpid();
    work->batches++;
    for (size_t n = 0; n < size; n++) {
        char headers[NAME];
        int length = snprintf(headers, sizeof headers,
            "NATS/1.0\r\nNats-Batch-Id: c%d-%zu\r\nNats-Batch-Sequence: %zu\r\n%s\r\n", own, work->batches, n + 1,
            n + 1 == size ? "Nats-Batch-Commit: 1\r\n" : "");
        if (length < 0 || (size_t)length >= sizeof headers) fail("headers are too long");
        say(work->link, "HPUB %s.~%zu ", work->record, ++work->recorded);
        if (n + 1 == size) say(work->link, "_CEILING.%d.batch.0 ", own);
        say(work->link, "%d %zu\r\n", length, (size_t)length + work->size);
        put(work->link, headers, (size_t)length);
        send_body(work->link, work->size);
        work->sent[n] = work->waiting[n];
    }
    memmove(work->waiting, work->waiting + size, (work->waiting_count - size) * sizeof *work->waiting);
    work->waiting_count -= size;
    work->sent_count = size;
}

static bool handle(Work *work, const Message *message) {
    if (strstr(message->subject, ".stored.") != NULL) {
        check_stored(message);
        ack_slot(work, index_of(message->subject, work->in_flight));
    } else if (strstr(message->subject, ".batch.") != NULL) {
        check_stored(message);
        for (size_t n = 0; n < work->sent_count; n++) ack_slot(work, work->sent[n]);
        work->sent_count = 0;
    } else if (strstr(message->subject, ".done") != NULL) {
        return true;
    } else if (message->reply[0] != '\0') {
        take_task(work, message);
    } else {
        fail("the pull was ended: %.*s", (int)(message->size < 100 ? message->size : 100), message->body);
    }
    return false;
}

static void pull(Work *work, const char *consumer) {
    Message message;
    int own = (int)getpid();
    for (size_t n = 0; n < work->in_flight; n++) work->unused[work->free_slots++] = n;
    say(work->link, "SUB _CEILING.%d.> 1\r\n", own);
    work->owed = work->in_flight;
    size_t asked = 0;
    for (bool is_done = false; !is_done;) {
        size_t more = work->owed < work->count - asked ? work->owed : work->count - asked;
        if (more > 0) {
            char body[NAME];
            int size = snprintf(body, sizeof body, "{\"batch\":%zu,\"expires\":600000000000}", more);
            if (size < 0 || (size_t)size >= sizeof body) fail("a request is too long");
            say(work->link, "PUB $JS.API.CONSUMER.MSG.NEXT.%s _CEILING.%d.task %d\r\n%s\r\n", consumer, own, size, body);
            asked += more;
        }
        work->owed = 0;
        next(work->link, &message);
        do is_done = handle(work, &message);
        while (!is_done && take(work->link, &message));
        send_batch(work);
    }
}

static void serve(char **argv, int argc, size_t port, size_t count) {
    bool has_record = strcmp(argv[1], "pull") != 0;
    Work *work = calloc(1, sizeof *work);
    if (work == NULL) fail("no memory");
    if (argc != (has_record ? 8 : 6)) fail("%s: too few or too many arguments", argv[1]);
    work->link = dial(port);
    work->count = count;
    work->in_flight = number(argv[5], "IN_FLIGHT", MOST_IN_FLIGHT);
    work->is_batched = strcmp(argv[1], "batch") == 0;
    if (has_record) {
        work->size = number(argv[6], "SIZE", MOST_SIZE);
        work->record = argv[7];
    }
    pull(work, argv[3]);
    free(work->link);
    free(work);
}

int main(int argc, char **argv) {
    if (argc < 5) fail("ask|publish|pull|work|batch PORT SUBJECT COUNT …: see the top of ceiling.c");
    size_t port = number(argv[2], "PORT", 65535), count = number(argv[4], "COUNT", 100000000);
    double p50 = 0.0;
    memset(filler, 'x', sizeof filler);
    filler[0] = '"';
    double began = now_s();
    if (strcmp(argv[1], "ask") == 0) {
        p50 = ask(port, argv[3], count);
    } else if (strcmp(argv[1], "publish") == 0 && argc == 7) {
        publish(port, argv[3], count, number(argv[5], "IN_FLIGHT", MOST_IN_FLIGHT), number(argv[6], "SIZE", MOST_SIZE));
    } else if (strcmp(argv[1], "pull") == 0 || strcmp(argv[1], "work") == 0 || strcmp(argv[1], "batch") == 0) {
        serve(argv, argc, port, count);
    } else {
        fail("%.40s with %d arguments: see the top of ceiling.c", argv[1], argc - 1);
    }
    printf("{\"count\":%zu,\"seconds\":%.9f,\"p50_us\":%.3f}\n", count, now_s() - began, p50);
    return 0;
}
