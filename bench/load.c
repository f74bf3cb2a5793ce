/* A load generator for HTTP on loopback: one epoll loop, N connections in flight, each request timed.
 *
 *   load IP PORT CONCURRENCY SECONDS MAX_REQUESTS KEEP_ALIVE(0|1) REQUEST_FILE
 *
 * Sends the bytes of the file on each connection, reads one whole answer by its Content-Length (or to
 * the end), and begins again: on a new connection, or on the same one with KEEP_ALIVE. A request lasts
 * from connect(2) (with KEEP_ALIVE: from its first byte) to the last byte of its answer. An answer
 * that is not 200, or a connection that breaks, has failed. What is under way when the time is over is
 * awaited, for an abandoned run holds its locks, but not counted. Prints one line of JSON. It is in C
 * so that it never is the slower side.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#define ROOM 65536
#define TO_THE_END ((size_t)1 << 60)

struct slot {
    int fd;
    size_t sent, got, need; /* need: bytes of the whole answer, 0 while unknown */
    double began;
    char answer[ROOM];
};

static char request[ROOM], scratch[ROOM * 4];
static size_t request_bytes;
static int keep_alive, loop, is_over, in_flight;
static struct sockaddr_in address;
static long done, failed, most;
static char last_failure[64] = "";
static float *latency_us;
static long latency_room;

static double now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec + t.tv_nsec / 1e9;
}

static void watch(struct slot *s, int how, unsigned events)
{
    struct epoll_event e = {.events = events, .data.ptr = s};
    epoll_ctl(loop, how, s->fd, &e);
}

static void begin(struct slot *s)
{
    s->sent = s->got = s->need = 0;
    s->began = now();
    in_flight++;
    if (s->fd >= 0) {
        watch(s, EPOLL_CTL_MOD, EPOLLOUT);
        return;
    }
    int one = 1;
    s->fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (s->fd < 0) {
        perror("socket");
        exit(1);
    }
    setsockopt(s->fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    connect(s->fd, (struct sockaddr *)&address, sizeof address);
    watch(s, EPOLL_CTL_ADD, EPOLLOUT);
}

static void again(struct slot *s, int is_good)
{
    if (is_over) {
        close(s->fd);
        s->fd = -1;
        in_flight--;
        return;
    }
    in_flight--;
    if (is_good) {
        if (done < latency_room)
            latency_us[done] = (now() - s->began) * 1e6;
        done++;
    } else {
        failed++;
    }
    if (!keep_alive || !is_good) {
        close(s->fd);
        s->fd = -1;
    }
    if (done + in_flight < most) /* none is begun that would not be counted, and yet awaited */
        begin(s);
    else if (s->fd >= 0)
        close(s->fd);
}

/* What the head says, once it is whole: 1 known, 0 more to come, -1 it is none. */
static int read_head(struct slot *s)
{
    s->answer[s->got] = 0;
    char *end = strstr(s->answer, "\r\n\r\n");
    if (!end)
        return s->got >= ROOM - 1 ? -1 : 0;
    char *length = strcasestr(s->answer, "\r\ncontent-length:");
    size_t head = end + 4 - s->answer;
    s->need = length && length < end ? head + strtoul(length + 17, NULL, 10) : TO_THE_END;
    return 1;
}

/* -1: broken, 0: more to come, 1: whole */
static int look(struct slot *s, int at_end)
{
    if (!s->need) {
        int known = read_head(s);
        if (known < 1)
            return known < 0 || at_end ? -1 : 0;
    }
    if (s->got < s->need && !(at_end && s->need == TO_THE_END))
        return at_end ? -1 : 0;
    if (strncmp(s->answer + 8, " 200", 4) == 0)
        return 1;
    snprintf(last_failure, sizeof last_failure, "status %.3s", s->answer + 9);
    return -1;
}

static void go_on(struct slot *s)
{
    while (s->sent < request_bytes) {
        ssize_t n = send(s->fd, request + s->sent, request_bytes - s->sent, MSG_NOSIGNAL);
        if (n < 0) {
            if (errno != EAGAIN && errno != EINPROGRESS) {
                snprintf(last_failure, sizeof last_failure, "send: %s", strerror(errno));
                again(s, 0);
            }
            return;
        }
        s->sent += n;
        if (s->sent == request_bytes)
            watch(s, EPOLL_CTL_MOD, EPOLLIN);
    }
    for (;;) {
        /* of a body only the length matters */
        ssize_t n = s->need ? recv(s->fd, scratch, sizeof scratch, 0)
                            : recv(s->fd, s->answer + s->got, ROOM - 1 - s->got, 0);
        if (n < 0 && errno == EAGAIN)
            return;
        if (n > 0)
            s->got += n;
        if (n < 0)
            snprintf(last_failure, sizeof last_failure, "receive after %zu bytes: %s", s->got, strerror(errno));
        else if (n == 0 && s->got == 0)
            snprintf(last_failure, sizeof last_failure, "closed without an answer");
        int state = n < 0 ? -1 : look(s, n == 0);
        if (state) {
            again(s, state > 0);
            return;
        }
    }
}

static int ascending(const void *a, const void *b)
{
    float x = *(const float *)a, y = *(const float *)b;
    return (x > y) - (x < y);
}

int main(int argc, char **argv)
{
    if (argc != 8)
        return 2;
    int concurrency = atoi(argv[3]);
    double seconds = atof(argv[4]);
    most = atol(argv[5]);
    long most_failed = most < 100000 ? most : 100000;
    keep_alive = atoi(argv[6]);
    FILE *file = fopen(argv[7], "r");
    if (!file)
        return 2;
    request_bytes = fread(request, 1, sizeof request, file);
    address.sin_family = AF_INET;
    address.sin_port = htons(atoi(argv[2]));
    inet_pton(AF_INET, argv[1], &address.sin_addr);
    latency_room = 4000000;
    latency_us = malloc(latency_room * sizeof *latency_us);
    loop = epoll_create1(EPOLL_CLOEXEC);
    struct slot *slots = calloc(concurrency, sizeof *slots);
    double start = now(), over = start + seconds;
    for (int i = 0; i < concurrency; i++) {
        slots[i].fd = -1;
        begin(&slots[i]);
    }
    struct epoll_event ready[256];
    while (now() < over && done < most && failed < most_failed) {
        int count = epoll_wait(loop, ready, 256, 100);
        for (int i = 0; i < count; i++)
            go_on(ready[i].data.ptr);
    }
    double took = now() - start;
    is_over = 1;
    while (in_flight && now() < start + took + 10) {
        int count = epoll_wait(loop, ready, 256, 100);
        for (int i = 0; i < count; i++)
            go_on(ready[i].data.ptr);
    }
    long n = done < latency_room ? done : latency_room;
    qsort(latency_us, n, sizeof *latency_us, ascending);
#define AT(share) (n ? latency_us[(long)((n - 1) * (share))] : 0)
    printf("{\"requests\": %ld, \"failed\": %ld, \"seconds\": %.6f, \"p50_us\": %.1f, \"p90_us\": %.1f, "
           "\"p99_us\": %.1f, \"max_us\": %.1f, \"last_failure\": \"%s\"}\n",
           done, failed, took, AT(0.5), AT(0.9), AT(0.99), AT(1.0), last_failure);
    return 0;
}
