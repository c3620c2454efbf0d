/*
 * What a C program may do with the library, one scenario a run: `scenarios NAME PEER`.
 *
 * PEER is online at the cloud of KKP2P_LOGIN, and sends back what it gets.  Exits with 0 and "ok",
 * or says which check has failed.
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <locale.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "kkp2p_sdk.h"

#define TIMEOUT_MS 20000
#define THREADS 16
#define CONNECTS 10 /* of each thread */
#define CHECK(truth) check(truth, __LINE__, #truth)

static const char *peer;
static int output = 1;

static void check(bool truth, int line, const char *text) {
    if (!truth) {
        dprintf(output, "line %d: %s; error_no %d, errno %d\n", line, text, kkp2p_error_no(), errno);
        _exit(1);
    }
}

static kkp2p_engine_t *make_engine(void) {
    kkp2p_engine_conf_t conf;
    kkp2p_engine_t *engine;

    memset(&conf, 0, sizeof(conf));
    conf.login_domain = "203.0.113.1"; /* for documentation (RFC 5737): KKP2P_LOGIN has the real one */
    conf.login_port = 3080;
    conf.disable_upnp = 1;
    conf.enable_engine_thread_pool = 1;
    engine = kkp2p_engine_init(&conf, TIMEOUT_MS);
    CHECK(engine != NULL);
    return engine;
}

static kkp2p_connect_ctx_t context(int mode) {
    kkp2p_connect_ctx_t ctx;

    memset(&ctx, 0, sizeof(ctx));
    strncpy(ctx.peer_id, peer, 32);
    ctx.connect_mode = mode;
    ctx.timeout = TIMEOUT_MS;
    return ctx;
}

static int open_fds(void) {
    DIR *folder = opendir("/proc/self/fd");
    int count = -3; /* ".", ".." and the one of the folder */

    while (readdir(folder) != NULL)
        count++;
    closedir(folder);
    return count;
}

static void echo(const kkp2p_channel_t *channel, const char *text) {
    char back[64] = "";
    int length = (int)strlen(text), got = 0;

    CHECK(kkp2p_write(channel->fd, text, length, TIMEOUT_MS) == length);
    while (got < length) {
        int count = kkp2p_read(channel->fd, back + got, (int)sizeof(back) - got, TIMEOUT_MS);
        CHECK(count > 0);
        got += count;
    }
    CHECK(got == length && memcmp(back, text, (size_t)length) == 0);
}

static void echo_and_close(kkp2p_engine_t *engine, const kkp2p_channel_t *channel) {
    echo(channel, "to and fro");
    kkp2p_close_fd(channel->fd);
    kkp2p_close_channel(engine, channel->channel_id);
}

/* Arguments that are wrong, with codes and no crash. */
static void arguments(void) {
    kkp2p_engine_t *engine = make_engine(), *none = (kkp2p_engine_t *)&engine;
    kkp2p_connect_ctx_t ctx = context(2);
    kkp2p_channel_t channel;
    uint32_t proxy_id;
    char buff[64], hosts[2][64];
    int fds[2];

    kkp2p_sdk_version(buff, sizeof(buff));
    CHECK(strchr(buff, '.') != NULL);
    kkp2p_sdk_version(buff, 2);
    CHECK(kkp2p_error_no() == KKP2P_ERROR_SMALL_BUFF);
    CHECK(kkp2p_engine_init(NULL, 0) == NULL && kkp2p_error_no() == KKP2P_ERROR_PARAMETER);
    kkp2p_engine_destroy(none);
    kkp2p_engine_destroy(NULL);
    CHECK(kkp2p_join_net(none, "peer", "x") == KKP2P_ERROR);
    CHECK(kkp2p_join_net(engine, NULL, "x") == KKP2P_ERROR_PARAMETER);
    CHECK(strstr(kkp2p_error_text(), "missing") != NULL);
    CHECK(kkp2p_join_net(engine, peer, "wrong") == KKP2P_ERROR_INVALID_PEER_KEY);
    CHECK(kkp2p_error_no() == KKP2P_ERROR_INVALID_PEER_KEY);
    CHECK(kkp2p_join_lan(engine, peer) == KKP2P_ERROR_PARAMETER); /* no lan_search_port */
    CHECK(kkp2p_accept(engine, 0, &channel) == 0 && kkp2p_accept(engine, 30, &channel) == 0);
    CHECK(kkp2p_error_no() == 0 && kkp2p_error_text()[0] == '\0');
    CHECK(kkp2p_accept(engine, -1, &channel) == KKP2P_ERROR_PARAMETER);
    CHECK(kkp2p_accept(engine, 0, NULL) == KKP2P_ERROR_PARAMETER);
    CHECK(kkp2p_connect(engine, NULL, &channel) == KKP2P_ERROR_PARAMETER);
    CHECK(kkp2p_connect(engine, &ctx, NULL) == KKP2P_ERROR_PARAMETER);
    CHECK(kkp2p_lan_search(engine, &ctx, &channel) == KKP2P_ERROR_LANMODE_MUSTUSE_P2P);
    ctx.channel_type = KKP2P_WEBRTC_CHANNEL;
    CHECK(kkp2p_connect(engine, &ctx, &channel) == KKP2P_ERROR_PARAMETER);
    ctx = context(2);
    strcpy(ctx.peer_id, "nobody");
    ctx.timeout = 100;
    CHECK(kkp2p_connect(engine, &ctx, &channel) == KKP2P_ERROR_CONNECT_TIMEOUT);
    CHECK(channel.fd == -1 && strstr(kkp2p_error_text(), "nobody") != NULL);
    memset(ctx.peer_id, 'x', sizeof(ctx.peer_id)); /* without an end */
    CHECK(kkp2p_connect(engine, &ctx, &channel) == KKP2P_ERROR_INVALID_PEER_ID);
    ctx = context(2);
    ctx.timeout = 0;
    CHECK(kkp2p_start_proxy(engine, "127.0.0.1", 0, &ctx, &proxy_id) == KKP2P_ERROR_PARAMETER);
    ctx.timeout = 1000;
    CHECK(kkp2p_start_proxy(engine, "192.0.2.1", 1, &ctx, &proxy_id) == KKP2P_ERROR_BIND_IP);
    CHECK(kkp2p_start_proxy(engine, "127.0.0.1", 0, &ctx, NULL) == KKP2P_ERROR_PARAMETER);
    kkp2p_stop_proxy(engine, 7);
    CHECK(kkp2p_get_domainip(engine, hosts[0], sizeof(hosts[0]), 2) == 1);
    CHECK(strcmp(hosts[0], "127.0.0.1") == 0);
    CHECK(kkp2p_get_domainip(engine, hosts[0], 4, 2) == KKP2P_ERROR_SMALL_BUFF);
    CHECK(kkp2p_get_domainip(engine, hosts[0], sizeof(hosts[0]), 0) == 0);
    CHECK(kkp2p_read(-1, buff, 1, 0) == KKP2P_ERROR && kkp2p_write(-1, buff, 1, 0) == KKP2P_ERROR);
    CHECK(pipe(fds) == 0 && kkp2p_read(fds[0], buff, 1, 0) == KKP2P_ERROR);
    CHECK(kkp2p_read(fds[0], buff, 0, 0) == KKP2P_ERROR_PARAMETER);
    CHECK(kkp2p_read(fds[0], buff, 1, -1) == KKP2P_ERROR_PARAMETER);
    CHECK(kkp2p_write(fds[1], NULL, 1, 0) == KKP2P_ERROR_PARAMETER);
    kkp2p_close_channel(engine, 7);
    kkp2p_close_fd(-1);
    kkp2p_engine_destroy(engine);
    CHECK(kkp2p_listen_fd(engine) == KKP2P_ERROR); /* no pointer to anything any more */
    kkp2p_engine_destroy(engine);
}

/* RFC 2202's first cases, and keys longer than a block. */
static void hmac(void) {
    static const char long_key[80] = {0};
    unsigned char out[20], key[80];
    char hex[41];
    int length = 0;

    CHECK(kkp2p_hmac_sha1("Jefe", 4, "what do ya want for nothing?", 28, out, &length) == 0);
    CHECK(length == 20);
    for (int i = 0; i < 20; i++)
        sprintf(hex + 2 * i, "%02x", out[i]);
    CHECK(strcmp(hex, "effcdf6ae5eb2fa2d27416d5f184df9c259a7c79") == 0);
    memset(key, 0xaa, sizeof(key));
    CHECK(kkp2p_hmac_sha1(key, 80, "Test Using Larger Than Block-Size Key - Hash Key First", 54, out,
              &length) == 0);
    for (int i = 0; i < 20; i++)
        sprintf(hex + 2 * i, "%02x", out[i]);
    CHECK(strcmp(hex, "aa4ae5e15272d00e95705637ce8a3b55ed402112") == 0);
    CHECK(kkp2p_hmac_sha1(long_key, 0, "", 0, out, NULL) == 0 && out[0] == 0xfb && out[19] == 0x1d);
    CHECK(kkp2p_hmac_sha1(NULL, 1, "", 0, out, NULL) == KKP2P_ERROR_PARAMETER);
}

/* 16 threads, 10 connects each, half of them with callbacks; and no descriptor is left. */

static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t called = PTHREAD_COND_INITIALIZER;
static int calls, failures;
static kkp2p_engine_t *shared;

static void connected(int result, const kkp2p_channel_t *channel, void *param) {
    if (result >= 0) {
        CHECK(strcmp(channel->peer_id, peer) == 0 && channel->connect_desc == (int)(intptr_t)param);
        echo_and_close(shared, channel);
    } else {
        CHECK(result == KKP2P_ERROR && channel->fd == -1);
    }
    pthread_mutex_lock(&mutex);
    calls++;
    failures += result < 0;
    pthread_cond_broadcast(&called);
    pthread_mutex_unlock(&mutex);
}

static void await_calls(int count) {
    pthread_mutex_lock(&mutex);
    while (calls < count)
        pthread_cond_wait(&called, &mutex);
    pthread_mutex_unlock(&mutex);
}

static void *connect_often(void *argument) {
    for (int i = 0; i < CONNECTS; i++) {
        kkp2p_connect_ctx_t ctx = context(i % 3);
        kkp2p_channel_t channel;
        if (i % 2) {
            ctx.func = connected;
            ctx.func_param = argument;
            ctx.connect_desc = (int)(intptr_t)argument;
            CHECK(kkp2p_connect(shared, &ctx, i % 4 == 1 ? NULL : &channel) == 0);
        } else {
            CHECK(kkp2p_connect(shared, &ctx, &channel) == 0);
            echo_and_close(shared, &channel);
        }
    }
    return NULL;
}

static void run_threads(void *(*function)(void *argument), pthread_t threads[THREADS]) {
    for (int i = 0; i < THREADS; i++)
        CHECK(pthread_create(&threads[i], NULL, function, (void *)(intptr_t)(100 + i)) == 0);
}

static void join(pthread_t threads[THREADS]) {
    for (int i = 0; i < THREADS; i++)
        CHECK(pthread_join(threads[i], NULL) == 0);
}

static void threads(void) {
    pthread_t started[THREADS];
    int before = open_fds();

    shared = make_engine();
    run_threads(connect_often, started);
    join(started);
    await_calls(THREADS * CONNECTS / 2);
    CHECK(failures == 0);
    kkp2p_engine_destroy(shared);
    CHECK(open_fds() == before);
}

/* The engine ends while 16 threads use it: every call and every callback comes back. */

static int begun;

static void closed(int result, const kkp2p_channel_t *channel, void *param) {
    (void)param;
    CHECK((result < 0) == (channel->fd < 0));
    if (result >= 0)
        kkp2p_close_fd(channel->fd);
    pthread_mutex_lock(&mutex);
    calls++;
    pthread_mutex_unlock(&mutex);
}

static void *connect_until_it_fails(void *argument) {
    kkp2p_channel_t channel;
    int result, expected = 0;

    (void)argument;
    do {
        kkp2p_connect_ctx_t ctx = context(2), later = ctx;
        later.func = closed;
        expected += kkp2p_connect(shared, &later, NULL) == 0;
        result = kkp2p_connect(shared, &ctx, &channel);
        if (result >= 0) {
            kkp2p_close_fd(channel.fd);
            kkp2p_close_channel(shared, channel.channel_id);
        }
        pthread_mutex_lock(&mutex);
        begun += 1;
        pthread_cond_broadcast(&called);
        pthread_mutex_unlock(&mutex);
    } while (result >= 0);
    return (void *)(intptr_t)expected;
}

static void *accept_until_it_fails(void *argument) {
    kkp2p_channel_t channel;

    while (kkp2p_accept(shared, TIMEOUT_MS, &channel) >= 0)
        ;
    return argument;
}

static void destroy(void) {
    pthread_t started[THREADS], accepting;
    int before = open_fds(), expected = 0;

    shared = make_engine();
    CHECK(pthread_create(&accepting, NULL, accept_until_it_fails, NULL) == 0);
    run_threads(connect_until_it_fails, started);
    pthread_mutex_lock(&mutex);
    while (begun < THREADS)
        pthread_cond_wait(&called, &mutex);
    pthread_mutex_unlock(&mutex);
    kkp2p_engine_destroy(shared);
    for (int i = 0; i < THREADS; i++) {
        void *count;
        CHECK(pthread_join(started[i], &count) == 0);
        expected += (int)(intptr_t)count;
    }
    CHECK(pthread_join(accepting, NULL) == 0);
    CHECK(calls == expected); /* engine_destroy has waited for them */
    CHECK(open_fds() == before);
}

static void destroy_in_callback(int result, const kkp2p_channel_t *channel, void *param) {
    (void)param;
    CHECK(result == 0);
    kkp2p_close_fd(channel->fd);
    kkp2p_engine_destroy(shared);
    pthread_mutex_lock(&mutex);
    calls++;
    pthread_cond_broadcast(&called);
    pthread_mutex_unlock(&mutex);
}

static void suicide(void) {
    kkp2p_connect_ctx_t ctx = context(2);

    shared = make_engine();
    ctx.func = destroy_in_callback;
    CHECK(kkp2p_connect(shared, &ctx, NULL) == 0);
    await_calls(1);
    CHECK(kkp2p_listen_fd(shared) == KKP2P_ERROR);
}

/* A thread that is cancelled: accept lets it be, nothing else does, and nothing stays locked. */

static void *accept_for_ever(void *unused) {
    kkp2p_channel_t channel;

    while (kkp2p_accept(shared, TIMEOUT_MS, &channel) >= 0)
        ;
    return unused;
}

static bool came_through;

static int take_no_line(const char *text, int length, void *param) {
    (void)text, (void)length, (void)param;
    return 0;
}

static void *do_all_but_accept(void *unused) {
    kkp2p_engine_t *engine;
    kkp2p_connect_ctx_t ctx = context(2);
    kkp2p_channel_t channel;
    char host[64];

    pthread_cancel(pthread_self());
    kkp2p_log_init(take_no_line, NULL, 4);
    engine = make_engine();
    kkp2p_log_switch_level(3);
    CHECK(kkp2p_get_domainip(engine, host, sizeof(host), 1) == 1);
    CHECK(kkp2p_listen_fd(engine) >= 0);
    for (int first = 0; first < 2; first++) {
        CHECK(kkp2p_connect(engine, &ctx, &channel) == 0);
        if (first)
            kkp2p_close_channel(engine, channel.channel_id);
        kkp2p_close_fd(channel.fd);
    }
    kkp2p_engine_destroy(engine);
    kkp2p_log_destroy();
    came_through = true;
    pthread_testcancel();
    return unused;
}

static void cancelled(void) {
    void *(*const functions[])(void *) = {accept_for_ever, do_all_but_accept};
    pthread_t thread;
    void *result;

    shared = make_engine();
    for (int i = 0; i < 2; i++) {
        CHECK(pthread_create(&thread, NULL, functions[i], NULL) == 0);
        if (i == 0)
            CHECK(pthread_cancel(thread) == 0);
        CHECK(pthread_join(thread, &result) == 0 && result == PTHREAD_CANCELED);
    }
    CHECK(came_through);
    kkp2p_engine_destroy(shared);
}

/* A forked child: its copy is dead, an engine of its own works, and the parent's goes on. */
static void forked(void) {
    kkp2p_engine_t *engine = make_engine();
    kkp2p_connect_ctx_t ctx = context(2);
    kkp2p_channel_t channel;
    int status;
    pid_t child = fork();

    if (child == 0) {
        CHECK(kkp2p_connect(engine, &ctx, &channel) == KKP2P_ERROR);
        CHECK(kkp2p_accept(engine, 0, &channel) == KKP2P_ERROR);
        kkp2p_engine_destroy(engine);
        engine = make_engine();
        CHECK(kkp2p_connect(engine, &ctx, &channel) == 0);
        echo_and_close(engine, &channel);
        kkp2p_engine_destroy(engine);
        exit(0);
    }
    CHECK(kkp2p_connect(engine, &ctx, &channel) == 0);
    echo_and_close(engine, &channel);
    CHECK(waitpid(child, &status, 0) == child && status == 0);
    kkp2p_engine_destroy(engine);
}

/* What an engine must leave as it was: signals, children, the locale. */

static volatile sig_atomic_t children_ended;

static void count_child(int number) {
    (void)number;
    children_ended++;
}

static void manners(void) {
    struct sigaction before[65], after;
    sigset_t mask, now;
    kkp2p_engine_t *engine;

    signal(SIGCHLD, count_child);
    signal(SIGUSR2, SIG_IGN);
    setlocale(LC_ALL, "C");
    for (int i = 1; i < 65; i++)
        sigaction(i, NULL, &before[i]);
    sigemptyset(&mask);
    sigaddset(&mask, SIGUSR1);
    pthread_sigmask(SIG_SETMASK, &mask, NULL);
    engine = make_engine();
    CHECK(waitpid(-1, NULL, WNOHANG) < 0 && errno == ECHILD);
    CHECK(waitpid(-1, NULL, WNOHANG | __WALL) < 0 && errno == ECHILD);
    raise(SIGUSR1); /* stays pending */
    kkp2p_engine_destroy(engine);
    pthread_sigmask(SIG_SETMASK, NULL, &now);
    for (int i = 1; i < 65; i++) {
        if (sigaction(i, NULL, &after) == 0)
            CHECK(after.sa_handler == before[i].sa_handler && after.sa_flags == before[i].sa_flags);
        CHECK(sigismember(&now, i) == sigismember(&mask, i));
    }
    CHECK(children_ended == 0);
    CHECK(strcmp(setlocale(LC_ALL, NULL), "C") == 0);
}

/* With 0 to 2 closed, and with none to spare. */
static void descriptors(void) {
    kkp2p_engine_t *engine;
    kkp2p_connect_ctx_t ctx = context(2);
    kkp2p_engine_conf_t conf;
    kkp2p_channel_t channel;
    struct rlimit limit = {40, 40};
    int taken;

    output = fcntl(1, F_DUPFD, 20);
    close(0);
    close(1);
    close(2);
    engine = make_engine();
    for (int fd = 0; fd < 3; fd++)
        CHECK(fcntl(fd, F_GETFD) < 0); /* nobody who writes there writes to us */
    CHECK(kkp2p_connect(engine, &ctx, &channel) == 0);
    echo_and_close(engine, &channel);
    CHECK(dup2(output, 1) == 1);
    CHECK(setrlimit(RLIMIT_NOFILE, &limit) == 0);
    while ((taken = dup(1)) >= 0)
        ;
    CHECK(kkp2p_connect(engine, &ctx, &channel) == KKP2P_ERROR_SOCKET_FD_OVERFLOW);
    memset(&conf, 0, sizeof(conf));
    CHECK(kkp2p_engine_init(&conf, 0) == NULL);
    CHECK(kkp2p_error_no() == KKP2P_ERROR_SOCKET_FD_OVERFLOW);
    close(38);
    close(39); /* enough to ask, but not for the answer's descriptor and another */
    CHECK(kkp2p_connect(engine, &ctx, &channel) == 0);
    echo_and_close(engine, &channel);
    kkp2p_engine_destroy(engine);
}

/* The log: lines come one at a time, and none after log_destroy. */

static int lines, in_line;

static int take_line(const char *text, int length, void *param) {
    pthread_mutex_lock(&mutex);
    CHECK(++in_line == 1 && (int)strlen(text) == length && param == &lines);
    in_line--;
    lines++;
    pthread_cond_broadcast(&called);
    pthread_mutex_unlock(&mutex);
    return 0;
}

static int end_log(const char *text, int length, void *param) {
    (void)text, (void)length, (void)param;
    kkp2p_log_destroy();
    pthread_mutex_lock(&mutex);
    lines = -1;
    pthread_cond_broadcast(&called);
    pthread_mutex_unlock(&mutex);
    return 0;
}

static void logs(void) {
    kkp2p_engine_t *engine, *other;
    int seen;

    kkp2p_log_init(NULL, NULL, 2);
    CHECK(kkp2p_error_no() == KKP2P_ERROR_PARAMETER);
    other = make_engine(); /* before log_init */
    kkp2p_log_init(take_line, &lines, 4);
    engine = make_engine();
    kkp2p_switch_log_level(engine, 4);
    kkp2p_engine_destroy(engine);
    kkp2p_log_destroy();
    CHECK(lines > 1);
    seen = lines;
    kkp2p_join_net(other, peer, "wrong");
    CHECK(lines == seen);
    kkp2p_log_init(end_log, NULL, 4);
    kkp2p_join_net(other, peer, "wrong");
    pthread_mutex_lock(&mutex);
    while (lines != -1)
        pthread_cond_wait(&called, &mutex);
    pthread_mutex_unlock(&mutex);
    kkp2p_engine_destroy(other);
}

/* As a daemon does: log_init, a fork, engine_init in the child; and as one that has an engine. */
static void daemonized(void) {
    kkp2p_engine_t *engine = NULL;
    int status;

    kkp2p_log_init(take_line, &lines, 0);
    for (int run = 0; run < 2; run++) {
        pid_t child = fork();
        if (child == 0) {
            alarm(TIMEOUT_MS / 1000); /* what would wait for ever outlives the test */
            kkp2p_log_switch_level(4);
            engine = make_engine();
            kkp2p_join_net(engine, peer, "wrong");
            kkp2p_engine_destroy(engine);
            kkp2p_log_destroy();
            CHECK(lines > 1);
            _exit(0); /* the leak check does not know that the parent's threads are not here */
        }
        CHECK(waitpid(child, &status, 0) == child && status == 0);
        CHECK(lines == 0);
        if (run == 0) {
            kkp2p_log_destroy();
            engine = make_engine();
            kkp2p_log_init(take_line, &lines, 0);
        }
    }
    kkp2p_engine_destroy(engine);
    kkp2p_log_destroy();
}

/* Channels of messages, and their bounds. */
static void messages(void) {
    static char large[65537];
    kkp2p_engine_t *engine = make_engine();
    kkp2p_connect_ctx_t ctx = context(0);
    kkp2p_channel_t channel;

    ctx.channel_type = KKP2P_UDP_CHANNEL;
    CHECK(kkp2p_connect(engine, &ctx, &channel) == 0);
    CHECK(channel.channel_type == KKP2P_UDP_CHANNEL);
    CHECK(kkp2p_write(channel.fd, large, sizeof(large), 0) == KKP2P_ERROR_PARAMETER);
    CHECK(kkp2p_read(channel.fd, large, 1, 0) == 0);
    echo_and_close(engine, &channel);
    kkp2p_engine_destroy(engine);
}

/* Writes, and ends in one of three ways: what was written arrives. */

static void write_all(int mode, const char *what) {
    kkp2p_engine_t *engine = make_engine();
    kkp2p_connect_ctx_t ctx = context(mode);
    kkp2p_channel_t channel;
    static char data[100000];

    memset(data, 'x', sizeof(data));
    ctx.connect_desc = 1; /* the peer is to read all, and say nothing */
    CHECK(kkp2p_connect(engine, &ctx, &channel) == 0);
    for (int sent = 0; sent < (int)sizeof(data);) {
        int count = kkp2p_write(channel.fd, data + sent, (int)sizeof(data) - sent, TIMEOUT_MS);
        CHECK(count > 0);
        sent += count;
    }
    if (strcmp(what, "killed") == 0)
        raise(SIGKILL);
    if (strcmp(what, "closed") == 0) {
        kkp2p_close_fd(channel.fd);
        kkp2p_close_channel(engine, channel.channel_id);
    }
}

/* epoll forgets a descriptor with close_fd, whoever ends the channel, and whoever has a copy. */

static int watched(int poller) {
    char path[64], line[256];
    FILE *file;
    int count = 0;

    sprintf(path, "/proc/self/fdinfo/%d", poller);
    file = fopen(path, "r");
    CHECK(file != NULL);
    while (fgets(line, sizeof(line), file) != NULL)
        count += strncmp(line, "tfd:", 4) == 0;
    fclose(file);
    return count;
}

static void watch(int poller, const kkp2p_channel_t *channel) {
    struct epoll_event event = {EPOLLIN, {NULL}};

    CHECK(epoll_ctl(poller, EPOLL_CTL_ADD, channel->fd, &event) == 0);
}

static void close_with_none_left(int fd) {
    struct rlimit before, limit;
    int taken[256], count = 0;

    CHECK(getrlimit(RLIMIT_NOFILE, &before) == 0);
    limit = before;
    limit.rlim_cur = sizeof(taken) / sizeof(taken[0]);
    CHECK(setrlimit(RLIMIT_NOFILE, &limit) == 0);
    while ((taken[count] = dup(1)) >= 0)
        count++;
    CHECK(errno == EMFILE);
    kkp2p_close_fd(fd);
    while (count > 0)
        close(taken[--count]);
    CHECK(setrlimit(RLIMIT_NOFILE, &before) == 0);
}

static void polled(void) {
    enum { NOBODY, WHO_CLOSES_IT, WHO_KEEPS_IT, SHARINGS };
    kkp2p_engine_t *engine = make_engine();
    int poller = epoll_create1(EPOLL_CLOEXEC), status, ends[2];
    kkp2p_channel_t channel;
    char byte, host[64];
    pid_t child = 0;

    for (int run = 0; run < 6 * SHARINGS; run++) {
        bool by_peer = run % 3 == 1, by_id = run % 3 == 2;
        int shared_with = run / 6;
        kkp2p_connect_ctx_t ctx = context(1 + run / 3 % 2);
        ctx.connect_desc = by_peer ? 2 : 0;
        CHECK(kkp2p_connect(engine, &ctx, &channel) == 0);
        /* The companion, which does one after the other, has closed its copy by the next answer. */
        CHECK(kkp2p_get_domainip(engine, host, sizeof(host), 1) == 1);
        watch(poller, &channel);
        if (by_peer)
            CHECK(kkp2p_read(channel.fd, &byte, 1, TIMEOUT_MS) == KKP2P_ERROR);
        if (shared_with != NOBODY) {
            CHECK(pipe(ends) == 0);
            child = fork();
            if (child == 0) {
                close(ends[1]);
                if (shared_with == WHO_CLOSES_IT) /* what a child closes is its own */
                    kkp2p_close_fd(channel.fd);
                else
                    CHECK(read(ends[0], &byte, 1) == 0);
                _exit(0);
            }
            close(ends[0]);
        }
        if (shared_with == WHO_CLOSES_IT) {
            CHECK(waitpid(child, &status, 0) == child && status == 0);
            CHECK(watched(poller) == 1);
            if (!by_peer)
                echo(&channel, "x");
        }
        if (by_id)
            kkp2p_close_channel(engine, channel.channel_id);
        CHECK(watched(poller) == 1);
        if (shared_with == NOBODY)
            close_with_none_left(channel.fd);
        else
            kkp2p_close_fd(channel.fd);
        CHECK(watched(poller) == 0);
        if (shared_with != NOBODY)
            close(ends[1]);
        if (shared_with == WHO_KEEPS_IT)
            CHECK(waitpid(child, &status, 0) == child && status == 0);
    }
    close(poller);
    kkp2p_engine_destroy(engine);
}

/* A channel's other end is told, whichever of the two calls comes first, or alone. */

static void *read_end(void *channel) {
    int fd = ((kkp2p_channel_t *)channel)->fd;
    char byte;

    CHECK(kkp2p_read(fd, &byte, 1, TIMEOUT_MS / 2) == KKP2P_ERROR); /* before the peer gives up */
    return NULL;
}

/* ... by close_fd also while a thread reads, and while a forked child has a copy and reads. */
static void end_for_all(const kkp2p_channel_t *channel) {
    kkp2p_channel_t mine = *channel;
    pthread_t reading;
    int status;
    pid_t child = fork();

    if (child == 0) {
        read_end(&mine);
        _exit(0);
    }
    CHECK(pthread_create(&reading, NULL, read_end, &mine) == 0);
    kkp2p_close_fd(channel->fd);
    CHECK(pthread_join(reading, NULL) == 0);
    CHECK(waitpid(child, &status, 0) == child && status == 0);
}

static void ends(void) {
    kkp2p_engine_t *engine = make_engine();
    char byte;

    for (int mode = 1; mode <= 2; mode++) {
        kkp2p_connect_ctx_t ctx = context(mode);
        kkp2p_channel_t channel;
        CHECK(kkp2p_connect(engine, &ctx, &channel) == 0);
        CHECK(channel.transmit_mode == mode);
        CHECK(fcntl(channel.fd, F_GETFL) & O_NONBLOCK);
        echo(&channel, "x");
        CHECK(kkp2p_read(channel.fd, &byte, 1, 10) == 0);
        kkp2p_close_channel(engine, channel.channel_id);
        CHECK(kkp2p_read(channel.fd, &byte, 1, TIMEOUT_MS) == KKP2P_ERROR);
        kkp2p_close_fd(channel.fd);
        ctx.connect_desc = 2; /* the peer ends it */
        CHECK(kkp2p_connect(engine, &ctx, &channel) == 0);
        CHECK(kkp2p_read(channel.fd, &byte, 1, TIMEOUT_MS) == KKP2P_ERROR);
        kkp2p_close_fd(channel.fd);
        ctx.connect_desc = 0;
        CHECK(kkp2p_connect(engine, &ctx, &channel) == 0);
        end_for_all(&channel);
    }
    kkp2p_engine_destroy(engine);
}

/* The companion gets one copy of a relayed channel's descriptor, however often the channel ends. */

static int given = -1; /* the descriptor whose copies are counted */
static int copies;

/* In place of libc's, also for the library. */
ssize_t sendmsg(int fd, const struct msghdr *message, int flags) {
    const struct cmsghdr *header = CMSG_FIRSTHDR(message);
    struct stat wanted, sent;
    int last;

    if (given >= 0 && header != NULL) {
        memcpy(&last, (const char *)header + header->cmsg_len - sizeof(last), sizeof(last));
        CHECK(fstat(given, &wanted) == 0 && fstat(last, &sent) == 0);
        copies += wanted.st_dev == sent.st_dev && wanted.st_ino == sent.st_ino;
    }
    return syscall(SYS_sendmsg, fd, message, flags);
}

static void repeated(void) {
    kkp2p_engine_t *engine = make_engine();

    for (int mode = 1; mode <= 2; mode++)
        for (int times = 0; times <= 3; times++) {
            kkp2p_connect_ctx_t ctx = context(mode);
            kkp2p_channel_t channel;
            CHECK(kkp2p_connect(engine, &ctx, &channel) == 0);
            echo(&channel, "x");
            given = channel.fd;
            for (int i = 0; i < times; i++)
                kkp2p_close_channel(engine, channel.channel_id);
            kkp2p_close_fd(channel.fd);
            given = -1;
            CHECK(copies == (mode == 2));
            copies = 0;
        }
    kkp2p_engine_destroy(engine);
}

/* What engine_init says. */
static void init(void) {
    kkp2p_engine_conf_t conf;
    kkp2p_engine_t *engine;

    memset(&conf, 0, sizeof(conf));
    conf.login_domain = (char *)peer;
    conf.login_port = 3080;
    engine = kkp2p_engine_init(&conf, 1000);
    printf("%s %d %s\n", engine == NULL ? "NULL" : "engine", kkp2p_error_no(), kkp2p_error_text());
}

static void lost(int result, const kkp2p_channel_t *channel, void *param) {
    (void)param;
    /* -1 once the companion is gone, or before that the cloud's word that nobody is online. */
    CHECK(result == KKP2P_ERROR && channel->fd == -1 && kkp2p_error_no() < 0);
    closed(result, channel, NULL);
}

/* The companion is killed while the program waits for it. */
static void companion(void) {
    kkp2p_connect_ctx_t ctx = context(2);
    kkp2p_channel_t channel;
    int before = open_fds();
    kkp2p_engine_t *engine = make_engine();

    strcpy(ctx.peer_id, "other"); /* is not online */
    ctx.func = lost;
    CHECK(kkp2p_connect(engine, &ctx, NULL) == 0);
    ctx.func = NULL;
    printf("waiting\n");
    fflush(stdout);
    CHECK(kkp2p_accept(engine, TIMEOUT_MS, &channel) == KKP2P_ERROR);
    CHECK(kkp2p_connect(engine, &ctx, &channel) == KKP2P_ERROR && channel.fd == -1);
    CHECK(kkp2p_error_no() == KKP2P_ERROR && kkp2p_error_text()[0] != '\0');
    kkp2p_close_channel(engine, 7);
    kkp2p_engine_destroy(engine);
    CHECK(calls == 1 && open_fds() == before);
}

int main(int argc, char **argv) {
    static const struct {
        const char *name;
        void (*run)(void);
    } all[] = {{"arguments", arguments}, {"hmac", hmac}, {"threads", threads}, {"destroy", destroy},
        {"suicide", suicide}, {"forked", forked}, {"manners", manners}, {"ends", ends},
        {"descriptors", descriptors}, {"logs", logs}, {"messages", messages}, {"init", init},
        {"companion", companion}, {"polled", polled}, {"cancelled", cancelled},
        {"daemonized", daemonized}, {"repeated", repeated}};

    if (argc < 3)
        return 2;
    peer = argv[2];
    if (argc > 3) {
        write_all(atoi(argv[3]), argv[1]);
        return 0;
    }
    for (size_t i = 0; i < sizeof(all) / sizeof(all[0]); i++)
        if (strcmp(all[i].name, argv[1]) == 0) {
            all[i].run();
            printf("ok\n");
            return 0;
        }
    return 2;
}
